"""A check before training: does a language model read packed captions, and continue from its cache, as it reads one
caption?

In training, captions are packed into rows (`prefixcap.packing`) and reach the model as embeddings, with our attention
mask and position ids; in decoding, it continues from its key/value cache. A model that counts positions along the row,
mixes captions of a row, or does more with its last hidden states than its head does, would silently be trained into
another one. So the losses, gradients and logits are compared.

Shapes: P prefix vectors, E width of the word embeddings, L tokens of a caption, V words in the vocabulary.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefixcap.data.tokens import Tokens
from prefixcap.decoding.cache import KeyValueCache
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.language.checks import ADVICE
from prefixcap.losses import token_cross_entropy
from prefixcap.packing import pack
from prefixcap.utils.hardware import out_of_memory

_STEPS = 4  # tokens that are read one at a time, from the cache
_POSITIONS = 256  # at least so many positions are filled with other images: two rows
# The relative difference of losses, gradients or logits that may be rounding. The same sums in another order differ by
# 1e-6 of a gradient in float32, by some 1e-4 with TF32, and by a few per cent in 16 bits, as differences add up over
# layers; LLM.int8() quantizes a position together with the others of its row. The differences to be noticed are larger:
# 14% of the gradient for the window of GPT-Neo, 55% and more for other models.
_ROUNDING = {torch.float32: 5e-4, torch.float16: 0.05, torch.bfloat16: 0.1}
_ROUNDING_8BIT = 0.3


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A context with a model in eval mode and not compiled, after which random generators are as they were before."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    # A compiled model would be compiled again for this check.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), eager:
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def require_same_reading(
    language_model: LanguageModel,
    prefix: Tensor,
    captions: Sequence[Tokens],
    positions: int,
    prompts: Sequence[Tokens] | None = None,
    prompts_first: bool = False,
) -> None:
    """Check that a language model reads captions packed into rows, by their embeddings, and from its cache, as it reads
    each by itself.

    The losses of captions and their gradients with respect to the prefix and to trained weights are compared with those
    of the model's own forward pass over one prefix and one caption; logits with a cache, with those without. It takes
    about ten passes over a row or a caption, and leaves weights and their gradients as they are.

    Args:
        language_model: in eval mode, its weights not sharded.
        prefix: (2, P, E) prefixes of two images.
        captions: token ids of one caption of each, with the end token: real ones, the first about as long as any.
        positions: the longest that one image, with all its captions, is in a row.
        prompts: token ids of the prompt of each of the two images; None: there are none.
        prompts_first: they are read before the prefix.

    Raises:
        InputError: the model reads them differently, or fails.
    """
    rounding, own_prompts = _rounding(language_model), prompts or ((), ())
    try:
        for what, actual, expected in _readings(
            language_model, prefix, captions, positions, own_prompts, prompts_first
        ):
            difference, size = (actual.float() - expected.float()).norm(), expected.float().norm()
            # `FiniteLoss` reports values that are not finite, with their captions.
            if size.isfinite() and not difference <= rounding * size:
                raise _unfit(language_model, f"{what}, by {float(difference / size):.1%}")
    except InputError:
        raise
    except Exception as error:  # anything, as the model's code is not ours
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _unfit(language_model, f"fails at what training asks of it ({reason})") from error


def _rounding(language_model: LanguageModel) -> float:
    dtype = language_model.model.get_input_embeddings().weight.dtype
    return _ROUNDING_8BIT if language_model.quantization == "8bit" else _ROUNDING[dtype]


def _unfit(language_model: LanguageModel, problem: str) -> InputError:
    return InputError(f"language model '{language_model.name}' {problem}: train another, {ADVICE}")


def _readings(
    language_model: LanguageModel,
    prefix: Tensor,
    captions: Sequence[Tokens],
    positions: int,
    prompts: Sequence[Tokens],
    prompts_first: bool,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared: a description, the result as in training or decoding, and the model's own."""
    tokens = [list(map(int, caption)) for caption in captions]
    input_ids = torch.tensor(tokens[:1], device=prefix.device)  # (1, L)
    prefix = prefix.detach().to(language_model.embed(input_ids).dtype)
    yield "reads tokens differently by their embeddings than by their ids", *_by_ids(language_model, input_ids)
    yield (
        "continues differently from its keys and values than from all tokens",
        *_by_cache(language_model, prefix[:1], input_ids),
    )
    window = getattr(language_model.model.config.get_text_config(decoder=True), "window_size", None)
    cut = f" (its window of {window} counts along the row: max_caption_tokens may cut captions so that they fit)"
    row = f"reads captions in one row, up to {positions} positions of an image, differently than each by itself"
    row += cut if window and window < positions else ""
    prompt_ids = [list(map(int, prompt)) for prompt in prompts]
    for actual, expected in zip(
        *_by_rows(language_model, prefix, tokens, positions, prompt_ids, prompts_first), strict=True
    ):
        yield row, actual, expected


@torch.no_grad()
def _by_ids(language_model: LanguageModel, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(1, L, V) logits of a (1, L) caption that is read by its embeddings, and by its ids."""
    actual = language_model.model(inputs_embeds=language_model.embed(input_ids), use_cache=False).logits
    return _centered(actual), _centered(language_model.model(input_ids=input_ids, use_cache=False).logits)


@torch.no_grad()
def _by_cache(language_model: LanguageModel, prefix: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(2, steps, V) logits of a caption's last tokens: read one at a time in two rows of a cache, and all at once."""
    embeddings = torch.cat((prefix, language_model.embed(input_ids[:, :-1])), dim=1)  # (1, P + L - 1, E)
    length = embeddings.shape[1]
    start = max(prefix.shape[1], length - _STEPS)
    cache = KeyValueCache(length)
    # Copies, as some models change their input in place.
    actual = [language_model.step(embeddings[:, :start].clone(), cache).expand(2, -1)]
    cache.select(torch.zeros(2, dtype=torch.long, device=prefix.device))
    for position in range(start, length):
        actual.append(language_model.step(embeddings[:, position : position + 1].repeat(2, 1, 1), cache))
    expected = language_model.mask_unknown_ids(language_model(embeddings, last=len(actual)).float()).expand(2, -1, -1)
    return _centered(torch.stack(actual, dim=1)), _centered(expected)


def _centered(logits: Tensor) -> Tensor:
    """Logits less their mean over the vocabulary, which probabilities do not depend on."""
    return logits.float() - logits.float().mean(-1, keepdim=True)


def _by_rows(
    language_model: LanguageModel,
    prefix: Tensor,
    captions: list[list[int]],
    positions: int,
    prompts: list[list[int]],
    prompts_first: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The loss and gradients of some captions in rows of many, and of the same captions each by itself."""
    owners, tokens, compared = _layout(prefix.shape[1] + len(prompts[0]), captions, positions)
    images = torch.tensor([0] + [1] * owners[-1])  # the prefix and prompt of each image: the first or the second
    own_prompts = [prompts[image] for image in images.tolist()]
    batch = pack(images, tokens, owners, prefix.shape[1], prompts=own_prompts, prompts_first=prompts_first)
    batch = batch.to(prefix.device)
    weights = torch.cat([torch.full((len(row),), float(index in compared)) for index, row in enumerate(tokens)])
    prefix = prefix.clone().requires_grad_()
    trained = [weight for weight in language_model.parameters() if weight.requires_grad]
    leaves = [prefix, *trained[:1], *trained[-1:]]

    def packed() -> Tensor:
        states, head = language_model.states(prefix[batch.embeddings], batch), language_model.head
        return token_cross_entropy(states, head.weight, head.bias, batch.targets, weights.to(prefix.device))

    def separate() -> Tensor:
        losses = []
        for index in compared:
            image = int(images[owners[index]])
            losses.append(_loss(language_model, prefix[image], prompts[image], tokens[index], prompts_first))
        return torch.stack(losses).sum()

    return _with_gradients(packed, leaves), _with_gradients(separate, leaves)


def _layout(
    prefix_length: int, captions: list[list[int]], positions: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """Captions for rows like those of batches: the image of each, its tokens, and the indices of those to compare.

    The first image has as many captions as fill its positions, the last one cut to fit; others, with one each, fill two
    rows and more. Compared are the first image's first caption, its last, which is far from the prefix in the row, and
    the caption of the last image.
    """
    first_image: list[list[int]] = []
    room = max(1, positions - prefix_length)
    for caption in itertools.cycle(captions):
        first_image.append([*caption[:-1][:room], caption[-1]])
        room -= max(1, len(caption) - 1)
        if room <= 0:
            break
    size = sum(prefix_length + len(caption) - 1 for caption in captions)
    others = captions[::-1] * -(-max(_POSITIONS, 2 * positions) // size)
    owners = [0] * len(first_image) + list(range(1, len(others) + 1))
    return owners, first_image + others, sorted({0, len(first_image) - 1, len(owners) - 1})


def _loss(
    language_model: LanguageModel, prefix: Tensor, prompt: list[int], caption: list[int], prompt_first: bool
) -> Tensor:
    """Negative log-probability of a caption after a (P, E) prefix and a prompt, by the model's own forward pass."""
    targets = torch.tensor(caption, device=prefix.device)  # (L,)
    input_ids = torch.tensor(prompt + caption[:-1], dtype=torch.long, device=prefix.device)  # (prompt + L - 1,)
    read, continued = language_model.embed(input_ids).split([len(prompt), len(caption) - 1])
    before = (read, prefix) if prompt_first else (prefix, read)
    embeddings = torch.cat((*before, continued)).unsqueeze(0)  # (1, P + prompt + L - 1, E)
    logits = language_model.model(inputs_embeds=embeddings, use_cache=False).logits[0, -len(caption) :]
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def _with_gradients(compute_loss: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """A loss, and its gradient with respect to each leaf."""
    loss = compute_loss()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    pairs = zip(gradients, leaves, strict=True)
    return [loss.detach(), *(torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in pairs)]
