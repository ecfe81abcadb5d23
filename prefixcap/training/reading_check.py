"""Whether a language model reads captions in training, and continues them from its cache, as it does one alone.

Captions lie together in rows, see `prefixcap.packing`, and reach a model as embeddings, with a mask and positions of
ours; decoders give it back its cache. A model that counts along the row, mixes what lies in it, or does more with its
last hidden states than its head, would be trained into another one without a word. So this is measured before training.
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

_STEPS = 4  # words that are read one at a time from the cache
_POSITIONS = 256  # of the captions of other images, at least: two rows
# How much of a loss, a gradient or logits may be rounding. The same sums in another order differ by 1e-6 of a gradient
# in float32, with TF32 by some 1e-4, and by a few per cent in 16 bits, as differences add up over layers; LLM.int8()
# rounds a position by what the others hold, too. What is to be noticed is larger: 14% of the gradient for the window of
# GPT-Neo, 55% and more for the others.
_ROUNDING = {torch.float32: 5e-4, torch.float16: 0.05, torch.bfloat16: 0.1}
_ROUNDING_8BIT = 0.3


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within it a model is in eval mode and not compiled, and random numbers that are drawn are not missed later."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    # A compiled model would be compiled again just for this check.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), eager:
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def require_same_reading(
    language_model: LanguageModel, prefix: Tensor, captions: Sequence[Tokens], positions: int
) -> None:
    """Check that a language model reads captions in rows, by their embeddings, and from its cache, as each alone.

    Losses of captions, and their gradients with respect to the prefix and to weights that are trained, are compared
    with those of the model's own forward pass over one prefix and one caption; logits after the cache with those
    without one. It takes about ten passes over a row or a caption, and leaves weights and their gradients as they are.

    Args:
        language_model: in eval mode, its weights not sharded.
        prefix: (2, prefix length, dim) of two images.
        captions: token ids of a caption of each, with the end token: real ones, the first about as long as they get.
        positions: the most that one image, with all its captions, takes of a row.

    Raises:
        InputError: it does not, or it fails.
    """
    rounding = _rounding(language_model)
    try:
        for what, found, expected in _readings(language_model, prefix, captions, positions):
            difference, size = (found.float() - expected.float()).norm(), expected.float().norm()
            # What is not finite `FiniteLoss` tells, with its captions.
            if size.isfinite() and not difference <= rounding * size:
                raise _unfit(language_model, f"{what}, by {float(difference / size):.1%}")
    except InputError:
        raise
    except Exception as error:  # whatever a model stumbles over, in code that is not ours
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
    language_model: LanguageModel, prefix: Tensor, captions: Sequence[Tokens], positions: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared, as training or decoding has it, and as the model itself gives it."""
    tokens = [list(map(int, caption)) for caption in captions]
    words = torch.tensor(tokens[:1], device=prefix.device)  # (1, length)
    prefix = prefix.detach().to(language_model.embed(words).dtype)
    yield "reads words otherwise by their embeddings than by their ids", *_by_ids(language_model, words)
    yield (
        "goes on otherwise from its keys and values than from all words",
        *_by_cache(language_model, prefix[:1], words),
    )
    window = getattr(language_model.model.config.get_text_config(decoder=True), "window_size", None)
    cut = f" (its window of {window} counts along the row: max_caption_tokens may cut captions so that they fit)"
    row = f"reads captions in one row, up to {positions} positions of an image, otherwise than each alone"
    row += cut if window and window < positions else ""
    for found, expected in zip(*_by_rows(language_model, prefix, tokens, positions), strict=True):
        yield row, found, expected


@torch.no_grad()
def _by_ids(language_model: LanguageModel, words: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a (1, length) caption that is read by its embeddings, and by its ids."""
    found = language_model.model(inputs_embeds=language_model.embed(words), use_cache=False).logits
    return _centred(found), _centred(language_model.model(input_ids=words, use_cache=False).logits)


@torch.no_grad()
def _by_cache(language_model: LanguageModel, prefix: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a caption's last words: of each read by itself in two rows of a cache, and of all read at once."""
    embeddings = torch.cat((prefix, language_model.embed(words[:, :-1])), dim=1)  # (1, length, dim)
    length = embeddings.shape[1]
    start = max(prefix.shape[1], length - _STEPS)
    cache = KeyValueCache(length)
    # Copies, as some models multiply what they read in place.
    found = [language_model.step(embeddings[:, :start].clone(), cache).expand(2, -1)]
    cache.select(torch.zeros(2, dtype=torch.long, device=prefix.device))
    for place in range(start, length):
        found.append(language_model.step(embeddings[:, place : place + 1].repeat(2, 1, 1), cache))
    expected = language_model.mask_unknown_ids(language_model(embeddings, last=len(found)).float()).expand(2, -1, -1)
    return _centred(torch.stack(found, dim=1)), _centred(expected)


def _centred(logits: Tensor) -> Tensor:
    """Logits less their mean, which probabilities do not depend on."""
    return logits.float() - logits.float().mean(-1, keepdim=True)


def _by_rows(
    language_model: LanguageModel, prefix: Tensor, captions: list[list[int]], positions: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The loss of some captions in rows of many, and its gradients; and these of each alone."""
    owners, tokens, compared = _layout(prefix.shape[1], captions, positions)
    images = torch.tensor([0] + [1] * owners[-1])  # which of the two prefixes each image has
    batch = pack(images, tokens, owners, prefix.shape[1]).to(prefix.device)
    weights = torch.cat([torch.full((len(row),), float(place in compared)) for place, row in enumerate(tokens)])
    prefix = prefix.clone().requires_grad_()
    trained = [weight for weight in language_model.parameters() if weight.requires_grad]
    leaves = [prefix, *trained[:1], *trained[-1:]]

    def together() -> Tensor:
        states, head = language_model.states(prefix[batch.embeddings], batch), language_model.head
        return token_cross_entropy(states, head.weight, head.bias, batch.targets, weights.to(prefix.device))

    def alone() -> Tensor:
        own = [_loss(language_model, prefix[images[owners[place]]], tokens[place]) for place in compared]
        return torch.stack(own).sum()

    return _with_gradients(together, leaves), _with_gradients(alone, leaves)


def _layout(
    prefix_length: int, captions: list[list[int]], positions: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """Captions in rows as batches have them: whose they are, their tokens, and which are to be compared.

    One image has as many as take all of its positions, the last one cut for it; others, one each, fill two rows and
    more. Compared are the image's first caption, its last, far from the prefix in the row, and that of the last image.
    """
    block: list[list[int]] = []
    room = max(1, positions - prefix_length)
    for caption in itertools.cycle(captions):
        block.append([*caption[:-1][:room], caption[-1]])
        room -= max(1, len(caption) - 1)
        if room <= 0:
            break
    size = sum(prefix_length + len(caption) - 1 for caption in captions)
    others = captions[::-1] * -(-max(_POSITIONS, 2 * positions) // size)
    owners = [0] * len(block) + list(range(1, len(others) + 1))
    return owners, block + others, sorted({0, len(block) - 1, len(owners) - 1})


def _loss(language_model: LanguageModel, prefix: Tensor, caption: list[int]) -> Tensor:
    """Negative log-probability of a caption after a (length, dim) prefix, by the model's own head, no mask of ours."""
    words = torch.tensor(caption, device=prefix.device)
    embeddings = torch.cat((prefix, language_model.embed(words[:-1]))).unsqueeze(0)
    logits = language_model.model(inputs_embeds=embeddings, use_cache=False).logits[0, len(prefix) - 1 :]
    return F.cross_entropy(logits.float(), words, reduction="sum")


def _with_gradients(read: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """What is read, and its gradient with respect to each leaf."""
    loss = read()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    pairs = zip(gradients, leaves, strict=True)
    return [loss.detach(), *(torch.zeros_like(leaf) if own is None else own for own, leaf in pairs)]
