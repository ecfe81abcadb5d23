"""Read the weights that the authors of ClipCap published (Mokady et al. 2021).

Such a file is the plain state dict of a model in `train.py` of github.com/rmokady/CLIP_prefix_caption. It does not say
which CLIP it needs and whether embeddings are scaled to unit length; both are taken from the notebooks there that load
it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, load_tokenizer
from prefixcap.mappers import build_mapper
from prefixcap.weights import Shapes, misfit, require_shapes, require_tensors

if TYPE_CHECKING:
    from transformers import GPT2Config

ENCODERS = {512: "clip:ViT-B/32", 640: "clip:RN50x4"}  # by the width of their embeddings
HEAD_WIDTH = 64  # of GPT-2 in every size
EMBEDDINGS, HEAD = "gpt.transformer.wte.weight", "gpt.lm_head.weight"  # tied in GPT-2
MASKS = re.compile(
    r"gpt\.transformer\.h\.\d+\.attn\.(masked_)?bias"
)  # older versions of GPT-2 had them among their weights
RENAMED = (
    ("language_model.model.", "gpt."),
    ("mapper.layers.", "clip_project.transformer.layers."),
    ("mapper.", "clip_project."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.fc2."),
)  # our names -> the published ones


@dataclass
class ClipCapParts:
    """The arguments of `Captioner`, and the weights for `Captioner.load_checkpoint_state_dict`."""

    language_model: LanguageModel
    encoder: EncoderIdentity
    mapper: dict[str, Any]
    normalize_embeddings: bool
    weights: dict[str, Tensor]


def is_clipcap(content: Any) -> bool:
    """Whether the content of a file, as torch loaded it, has names like ClipCap's weights."""
    return isinstance(content, dict) and any(str(name).startswith(("gpt.", "clip_project.")) for name in content)


def read_clipcap(
    content: dict[str, Any], source: Path, tokenizer: str = "gpt2", normalize_embeddings: bool | None = None
) -> ClipCapParts:
    """The parts of a published captioner, with sizes inferred from the shapes of the weights.

    The language model counts as fully tuned, so that its weights are saved with the captioner's. Of the encoder only
    the name is known: digest and preprocessing are empty.

    Args:
        content: what torch loaded, see `is_clipcap`.
        source: the file.
        tokenizer: GPT-2's, by its name on the model hub or as a folder.
        normalize_embeddings: None: scale embeddings to unit length for the transformer, but not for the MLP.

    Raises:
        InputError: as `read_layout`; the tied weights of GPT-2 differ; or the tokenizer cannot be loaded or belongs to
            another model.
    """
    from transformers import GPT2LMHeadModel

    config, encoder, mapper, weights = read_layout(content, source)
    if not torch.equal(content.get(HEAD, content[EMBEDDINGS]), content[EMBEDDINGS]):
        raise InputError(f"{source}: weight '{HEAD}' differs from '{EMBEDDINGS}', but GPT-2 has one for both")

    loaded = load_tokenizer(tokenizer)
    if len(loaded) != config.vocab_size:
        raise InputError(
            f"tokenizer '{tokenizer}' has {len(loaded)} tokens, but the language model of {source} knows "
            f"{config.vocab_size}: give GPT-2's tokenizer"
        )
    return ClipCapParts(
        language_model=LanguageModel(GPT2LMHeadModel(config), loaded, source.name, "full"),
        encoder=encoder,
        mapper=mapper,
        normalize_embeddings=mapper["name"] == "transformer" if normalize_embeddings is None else normalize_embeddings,
        weights=weights,
    )


def read_layout(
    content: dict[str, Any], source: Path
) -> tuple["GPT2Config", EncoderIdentity, dict[str, Any], dict[str, Tensor]]:
    """Infer the layout of a published file from names and shapes.

    Returns:
        The configuration of the language model, the encoder, the options of `build_mapper`, and all weights by the
        names that `Captioner.load_checkpoint_state_dict` expects.

    Raises:
        InputError: a weight is missing, unknown or of another shape (the message names it), or ClipCap used no CLIP
            with embeddings of that width.
    """
    from transformers import GPT2LMHeadModel

    weights = {str(name): weight for name, weight in content.items() if not MASKS.fullmatch(str(name))}
    weights.setdefault(HEAD, weights.get(EMBEDDINGS))
    shapes = {name: tuple(getattr(weight, "shape", ())) for name, weight in weights.items()}
    config = _gpt2_config(shapes, source)
    mapper, dim = _mapper_options(shapes, config.n_embd, source)
    if dim not in ENCODERS:
        known = " or ".join(f"{width} ({name})" for width, name in ENCODERS.items())
        raise InputError(f"{source} reads embeddings of width {dim}, but what ClipCap published reads {known}")
    with torch.device("meta"):
        parts = {
            "language_model.model.": GPT2LMHeadModel(config),
            "mapper.": build_mapper(embedding_dim=dim, lm_dim=config.n_embd, **mapper),
        }
    own = {part + name: weight.shape for part, model in parts.items() for name, weight in model.state_dict().items()}
    published_name = {name: _published_name(name) for name in own}
    require_shapes(shapes, {published_name[name]: tuple(shape) for name, shape in own.items()}, source)
    require_tensors(weights, source)
    encoder = EncoderIdentity(name=ENCODERS[dim], digest="", preprocessing="", dim=dim)
    return config, encoder, mapper, {name: weights[published_name[name]] for name in own}


def _gpt2_config(shapes: Shapes, source: Path) -> "GPT2Config":
    from transformers import GPT2Config

    vocabulary, width = _matrix(shapes, EMBEDDINGS, source)
    positions, _ = _matrix(shapes, "gpt.transformer.wpe.weight", source)
    if not width or width % HEAD_WIDTH:
        raise InputError(f"{source}: weight '{EMBEDDINGS}' is {width} wide, not a multiple of {HEAD_WIDTH} as in GPT-2")
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_layer=_count_layers(shapes, "gpt.transformer.h."),
        n_head=width // HEAD_WIDTH,
        bos_token_id=vocabulary - 1,  # <|endoftext|> is GPT-2's last token
        eos_token_id=vocabulary - 1,
    )


def _mapper_options(shapes: Shapes, width: int, source: Path) -> tuple[dict[str, Any], int]:
    """The options of `build_mapper`, and the width of the embeddings that the mapper reads."""
    if any(name.startswith("clip_project.model.") for name in shapes):
        _, dim = _matrix(shapes, "clip_project.model.0.weight", source)
        outputs, _ = _matrix(shapes, "clip_project.model.2.weight", source)
        return {"name": "mlp", "prefix_length": outputs // width}, dim
    outputs, dim = _matrix(shapes, "clip_project.linear.weight", source)
    prefix_length, _ = _matrix(shapes, "clip_project.prefix_const", source)
    layers = _count_layers(shapes, "clip_project.transformer.layers.")
    options = {"prefix_length": prefix_length, "clip_length": outputs // width, "layers": layers, "heads": 8}
    return {"name": "transformer", **options}, dim


def _matrix(shapes: Shapes, name: str, source: Path) -> tuple[int, int]:
    """Rows and columns of a matrix. Raises InputError if there is no such weight, or it is not a matrix."""
    if name not in shapes:
        raise misfit(source, "lacks", name)
    if len(shapes[name]) != 2:
        raise InputError(f"{source}: weight '{name}' is {shapes[name]}, not a matrix")
    rows, columns = shapes[name]
    return rows, columns


def _count_layers(shapes: Shapes, stem: str) -> int:
    """The number of layers, by the numbers behind `stem` in names; at least one, so that missing layers are noticed."""
    return max(1, len({match[1] for name in shapes if (match := re.match(re.escape(stem) + r"(\d+)\.", name))}))


def _published_name(name: str) -> str:
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    return name
