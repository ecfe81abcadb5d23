import copy
import doctest
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import prefixcap.metrics.perplexity as module
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.metrics.perplexity import Perplexity, negative_log_likelihood
from tests.conftest import small_lm

CAPTIONS = [
    "A red circle in a meadow.",
    "",
    "A plain blue square at the top.",
    "x",
    "There is a large striped star in pink on the left by the sea.",
    "A small triangle and words that the small world has never seen",
]


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return load_language_model("demo")


def plain_loop(language_model: LanguageModel, caption: str) -> tuple[float, int]:
    """One token at a time, each after all before it, from the end token of GPT-2 on."""
    tokens = language_model.tokenizer(caption)["input_ids"]
    read, nats = [language_model.eos_token_id], 0.0
    for token in tokens:
        logits = language_model.model(torch.tensor([read])).logits[0, -1].double()
        nats -= logits.log_softmax(dim=0)[token].item()
        read.append(token)
    return nats, len(tokens)


@torch.no_grad()
def test_every_token_is_read_after_those_before_it(demo: LanguageModel) -> None:
    nats, tokens = negative_log_likelihood(demo, CAPTIONS)
    one_by_one = [plain_loop(demo, caption) for caption in CAPTIONS]
    assert nats.tolist() == pytest.approx([of_caption for of_caption, _ in one_by_one], rel=1e-5)
    assert tokens.tolist() == [length for _, length in one_by_one]
    metric = Perplexity(demo)
    metric.update(CAPTIONS[:4])
    metric.update(CAPTIONS[4:])
    total = math.fsum(of_caption for of_caption, _ in one_by_one)
    assert metric.compute().item() == pytest.approx(math.exp(total / tokens.sum().item()), rel=1e-5)


def test_it_is_the_loss_of_transformers(demo: LanguageModel) -> None:
    """Which reads labels itself, and averages over all but the first."""
    caption = CAPTIONS[4]
    tokens = torch.tensor([[demo.eos_token_id, *demo.tokenizer(caption)["input_ids"]]])
    metric = Perplexity(demo)
    metric.update([caption])
    assert metric.compute().item() == pytest.approx(demo.model(tokens, labels=tokens).loss.exp().item(), rel=1e-5)


def test_words_in_order_are_likelier_than_shuffled(demo: LanguageModel) -> None:
    def perplexity(captions: list[str]) -> float:
        metric = Perplexity(demo)
        metric.update(captions)
        return metric.compute().item()

    assert perplexity([CAPTIONS[0], CAPTIONS[2]]) < 5
    assert perplexity(["meadow circle in a A red.", "square top A the plain blue at."]) > 100


def test_the_first_token_follows_the_begin_token_of_a_tokenizer_that_has_one() -> None:
    language_model = small_lm()
    [end], [with_end] = negative_log_likelihood(language_model, ["A red"])[0], plain_loop(language_model, "A red")[:1]
    assert end.item() == pytest.approx(with_end, rel=1e-5)
    language_model.tokenizer = copy.deepcopy(language_model.tokenizer)
    language_model.tokenizer.bos_token = "!"
    [begin] = negative_log_likelihood(language_model, ["A red"])[0]
    language_model.eos_token_id = language_model.tokenizer.bos_token_id
    assert begin.item() == pytest.approx(plain_loop(language_model, "A red")[0], rel=1e-5)
    assert begin.item() != pytest.approx(end.item(), rel=1e-3)
    language_model.tokenizer.bos_token = None
    [neither] = negative_log_likelihood(language_model, ["A red"])[0]
    assert neither.item() == begin.item()


def test_batches_are_bounded_and_padding_changes_nothing(demo: LanguageModel) -> None:
    captions = [" ".join(["A red ring."] * (1 + row % 15)) for row in range(150)]
    shapes = []

    def note(_: nn.Module, inputs: tuple[Tensor, int]) -> None:
        shapes.append(inputs[0].shape[:2])

    hook = demo.register_forward_pre_hook(lambda model, inputs: note(model, inputs))
    nats, _ = negative_log_likelihood(demo, captions)
    hook.remove()
    assert len(shapes) > 2
    assert all(batch * length <= 1024 for batch, length in shapes)
    alone = torch.cat([negative_log_likelihood(demo, [caption])[0] for caption in captions[:15]])
    torch.testing.assert_close(nats, alone.repeat(10), rtol=1e-4, atol=1e-3)


def test_captions_up_to_the_context_can_be_read() -> None:
    language_model = small_lm()
    assert language_model.context == 96
    nats, tokens = negative_log_likelihood(language_model, [" a" * 96])
    assert tokens.tolist() == [96] and nats.isfinite().all()
    with pytest.raises(InputError, match="captions: rows 0, 2 longer than the 96 tokens that language model 'random'"):
        negative_log_likelihood(language_model, [" a" * 97, "a", " a" * 200])


def test_a_model_in_training_is_read_without_dropout_and_trains_on() -> None:
    language_model = small_lm("full")
    assert language_model.training
    first, _ = negative_log_likelihood(language_model, CAPTIONS)
    second, _ = negative_log_likelihood(language_model, CAPTIONS)
    assert torch.equal(first, second) and language_model.training and not first.requires_grad


def test_copies_reset_and_mistakes(demo: LanguageModel) -> None:
    metric = Perplexity(demo)
    metric.update(CAPTIONS[:2])
    expected = metric.compute().item()
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        copied.update(CAPTIONS[:2])
        assert copied.compute().item() == pytest.approx(expected, rel=1e-6)
    for mistake, message in (("A dog.", "one string where a list"), (["a", None], "row 1: not a string")):
        with pytest.raises(InputError, match=message):
            metric.update(mistake)  # type: ignore[arg-type]
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="call update"):
        metric.compute()
    metric.update(["", ""])
    with pytest.raises(InputError, match="only empty ones"):
        metric.compute()


def test_examples() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0 and failed == 0
