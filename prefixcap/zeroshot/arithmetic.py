"""Arithmetic with a CLIP's embeddings of images and texts (Tewel et al., "ZeroCap", CVPR 2022, section 4).

    img:a.jpg - img:b.jpg + txt:'a night'
    0.5*img:"my photo.jpg" + 2 * (txt:'image of a day' - emb:stores/demo-demo#17)

`img:PATH` is an image, `txt:TEXT` a text, and `emb:STORE#ID` the embedding of an image in a feature store, by its id.
Names with spaces or brackets are quoted, with single or double quotes. A weight precedes its operand. The grammar:

    sum      = product { ("+" | "-") product }
    product  = { "-" | NUMBER "*" } ( operand | "(" sum ")" )

Embeddings are added as the encoder returns them, and only the result is scaled, as in the released code
(`CLIPTextGenerator.get_combined_feature`); the paper does not say otherwise. An encoder's image embeddings may be much
longer than its text embeddings (the small world's: twice as long), so that a text may need a weight to count as much.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, embed_images
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import FeatureStore
from prefixcap.store.remote import is_remote
from prefixcap.utils.images import open_image

if TYPE_CHECKING:
    from prefixcap.zeroshot.magic import Magic
    from prefixcap.zeroshot.zerocap import ZeroCap

OPERANDS = "img:PATH, txt:'TEXT' or emb:STORE#ID"
_NOTHING = 1e-5  # a result this much shorter than its operands is a rounding error

_NUMBER = r"(?: \d+ (?: \.\d* )? | \.\d+ ) (?: [eE][-+]?\d+ )?"
# A name without quotes ends at a space, a bracket, a quote, or a sign that an operand follows, weighted or not.
_TOKEN = re.compile(
    rf"""(?P<operand> (?P<kind>\w+) : (?: '(?P<single>[^']*)' | "(?P<double>[^"]*)" | (?P<plain>
             (?: (?! [-+] (?: [-+(\s] | {_NUMBER} \s* \* )* (?:img|txt|emb): ) [^\s()'"] )* ) ) )
       | (?P<number> {_NUMBER} )
       | (?P<sign> [-+*()] )""",
    re.VERBOSE,
)


class Term(NamedTuple):
    """An operand times a weight.

    Attributes:
        weight: a factor.
        kind: img, txt or emb.
        name: the path, the text, or STORE#ID.
        position: of the operand's first character in the expression, from 0.
    """

    weight: float
    kind: str
    name: str
    position: int


def arithmetic(expression: str, captioner: "ZeroCap | Magic | Captioner", **options: Any) -> str:
    """Caption the result of an expression.

    Args:
        expression: see the top of this module.
        captioner: its encoder embeds the operands. The paper uses ZeroCap, with an end factor of 1.06 from step 1 on,
            and for comparison a trained captioner (ClipCap, Table 2).
        options: of the captioner's `caption`.

    Raises:
        InputError: as `embed_expressions`, `encoder_of` or the captioner.

    Examples:
        >>> import prefixcap
        >>> caption = arithmetic("img:photo.jpg - img:another.png + 2*txt:'red'", prefixcap.load("best.ckpt"))
    """
    return captioner.caption(embed_expressions([expression], encoder_of(captioner)), **options)[0]


def encoder_of(captioner: "ZeroCap | Magic | Captioner") -> Encoder:
    """The encoder of a captioner that reads embeddings.

    Raises:
        InputError: the captioner reads patches or regions of images, or its encoder cannot be loaded.
    """
    if not isinstance(captioner, Captioner):
        return captioner.encoder
    if captioner.features is not Feature.IMAGE:
        raise InputError(
            f"arithmetic results in one embedding, and this captioner reads {captioner.features}: give one that reads "
            f"{Feature.IMAGE}"
        )
    return captioner.encoder()


def embed_expressions(expressions: Sequence[str], encoder: Encoder, root: str | Path = "") -> Tensor:
    """The results of expressions, as embeddings to use like those of images.

    The length of each is the mean length of the images in its expression, or of the texts if there is no image. ZeroCap
    and MAGIC ignore the length, but a captioner trained on unscaled embeddings expects that of an image.

    Args:
        expressions: see the top of this module.
        encoder: embeds images and texts; stores must be of the same encoder.
        root: the folder that paths are relative to.

    Returns:
        (expressions, dim) float32, on the encoder's device.

    Raises:
        InputError: an expression is invalid, an image or a store cannot be read, a store is of another encoder or has
            no such image, or a difference is zero.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> embed_expressions(["txt:'a red ring' - txt:'a ring' + txt:'a star'"], load_encoder("demo")).shape
        torch.Size([1, 128])
    """
    parsed = [parse(expression) for expression in expressions]
    embedded: dict[tuple[str, str], Tensor] = {}  # by kind and name
    for kind, embed in (("img", _embed_images), ("txt", _embed_texts), ("emb", _embed_stored)):
        named = {
            term.name: _Place(expression, term.position)
            for expression, terms in zip(expressions, parsed, strict=True)
            for term in terms
            if term.kind == kind
        }
        if named:
            embeddings = embed(named, encoder, Path(root)).to(encoder.device, torch.float32)
            embedded |= {(kind, name): row for name, row in zip(named, embeddings, strict=True)}
    results = []
    for expression, terms in zip(expressions, parsed, strict=True):
        operands = torch.stack([embedded[term.kind, term.name] for term in terms])  # (terms, dim)
        images = [row for row, term in enumerate(terms) if term.kind != "txt"]
        try:
            results.append(weighted_sum(operands, [term.weight for term in terms], images))
        except InputError as error:
            raise InputError(f"{expression!r} {error}") from error
    return torch.stack(results)


def weighted_sum(operands: Tensor, weights: Sequence[float], images: Sequence[int]) -> Tensor:
    """The weighted sum of embeddings, scaled to the mean length of the images among them, or of all if there are none.

    Args:
        operands: (terms, dim) as the encoder returns them.
        weights: (terms,)
        images: the rows of operands that are images.

    Returns:
        (dim,)

    Raises:
        InputError: the sum is zero or not finite; the message is only the reason.

    Examples:
        >>> weighted_sum(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), [1.0, 0.0], images=[0])
        tensor([3., 0.])
    """
    lengths, factors = operands.norm(dim=1), operands.new_tensor(weights)
    total = factors @ operands
    length, parts = float(total.norm()), float(factors.abs() @ lengths)
    if not _NOTHING * parts < length < math.inf:
        raise InputError(f"comes to {'nothing' if length < math.inf else 'no finite embedding'}")
    scaled: Tensor = total * (lengths[list(images) or slice(None)].mean() / length)
    return scaled


# ---- operands ----------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A character of an expression."""

    expression: str
    at: int

    def mistake(self, problem: str) -> InputError:
        return InputError(f"{problem}, at character {self.at + 1} of the expression {self.expression!r}")


def _embed_images(images: dict[str, _Place], encoder: Encoder, root: Path) -> Tensor:
    return embed_images(encoder, [_open(root / path, place) for path, place in images.items()])


def _open(path: Path, place: _Place) -> Image.Image:
    try:
        return open_image(path)
    except InputError as error:
        raise place.mistake(str(error)) from error


def _embed_texts(texts: dict[str, _Place], encoder: Encoder, root: Path) -> Tensor:
    return encoder.encode_texts(list(texts))


def _embed_stored(images: dict[str, _Place], encoder: Encoder, root: Path) -> Tensor:
    """Embeddings from stores, each of which is opened once."""
    by_store: dict[str, dict[str, str]] = {}  # of each store the operands' names by image id
    for name, place in images.items():
        location, mark, image_id = name.rpartition("#")
        if not mark or not location or not image_id:
            raise place.mistake(f"'emb:{name}' is not an image of a store: give emb:STORE#ID")
        by_store.setdefault(location, {})[image_id] = name
    embeddings: dict[str, Tensor] = {}
    for location, names in by_store.items():
        try:
            store = FeatureStore(location if is_remote(location) else root / location)
            store.require_encoder(encoder.identity)
            for split in map(store.split, store.splits):
                rows = {names[str(image_id)]: row for row, image_id in enumerate(split.ids) if str(image_id) in names}
                if rows:
                    embeddings |= zip(rows, torch.from_numpy(split.embeddings[list(rows.values())]), strict=True)
        except InputError as error:
            raise images[next(iter(names.values()))].mistake(str(error)) from error
        if missing := [name for name in names.values() if name not in embeddings]:
            raise images[missing[0]].mistake(f"{location} has no image {missing[0].rpartition('#')[2]}")
    return torch.stack([embeddings[name] for name in images])


# ---- expressions -------------------------------------------------------------------------------------


def parse(expression: str) -> list[Term]:
    """The terms of an expression, with brackets expanded.

    Raises:
        InputError: it is empty or violates the grammar; the message says where.

    Examples:
        >>> [(term.weight, term.kind, term.name) for term in parse("img:a.jpg - 2*(txt:'b' - txt:'c d')")]
        [(1.0, 'img', 'a.jpg'), (-2.0, 'txt', 'b'), (2.0, 'txt', 'c d')]
    """
    parser = _Parser(expression)
    try:
        terms = parser.sum(1.0)
    except RecursionError as error:
        raise InputError("the expression has too many nested brackets") from error
    parser.end()
    return terms


class _Parser:
    """A recursive descent parser: a method for each rule of the grammar, which consumes the tokens of that rule."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.tokens = self._split()
        self.next = 0
        if not self.tokens:
            raise InputError(f"the expression is empty: give operands ({OPERANDS}), sums and differences of them")

    def sum(self, weight: float) -> list[Term]:
        terms = self.product(weight)
        while sign := self.take("+") or self.take("-"):
            terms += self.product(weight if sign[0] == "+" else -weight)
        return terms

    def product(self, weight: float) -> list[Term]:
        while True:
            token = self.tokens[self.next] if self.next < len(self.tokens) else None
            self.next += 1
            if token is None:
                raise self.mistake(len(self.expression), "an operand is missing")
            if token["operand"]:
                return [self.operand(token, weight)]
            if token["number"]:
                weight *= float(token[0])
                if not self.take("*"):
                    raise self.mistake(token.end(), f"a weight needs '*' and an operand: {token[0]}*img:PATH")
            elif token[0] == "-":
                weight = -weight
            elif token[0] == "(":
                terms = self.sum(weight)
                if not self.take(")"):
                    raise self.mistake(token.start(), "this bracket is not closed")
                return terms
            else:
                raise self.mistake(token.start(), f"an operand is missing before '{token[0]}'")

    def operand(self, token: re.Match[str], weight: float) -> Term:
        kind, position = token["kind"], token.start()
        name = token["single"] or token["double"] or token["plain"]
        if kind not in ("img", "txt", "emb"):
            raise self.mistake(position, f"unknown operand '{token[0]}': give {OPERANDS}")
        if not name:
            raise self.mistake(position, f"'{kind}:' names nothing: give {OPERANDS}")
        return Term(weight, kind, name, position)

    def end(self) -> None:
        if self.next < len(self.tokens):
            token = self.tokens[self.next]
            what = {")": "this bracket was not opened", "*": "a weight comes first: 0.5*img:PATH"}
            raise self.mistake(token.start(), what.get(token[0], f"'+' or '-' is missing before '{token[0]}'"))

    def take(self, sign: str) -> re.Match[str] | None:
        """The next token, if it is this sign."""
        if self.next == len(self.tokens) or self.tokens[self.next][0] != sign:
            return None
        self.next += 1
        return self.tokens[self.next - 1]

    def mistake(self, at: int, problem: str) -> InputError:
        return _Place(self.expression, at).mistake(problem)

    def _split(self) -> list[re.Match[str]]:
        tokens, at = [], 0
        while rest := self.expression[at:].lstrip():
            at = len(self.expression) - len(rest)
            token = _TOKEN.match(self.expression, at)
            end = token.end() if token else at
            if self.expression[end : end + 1] in ("'", '"'):
                raise self.mistake(end, "this quote is not closed, or does not follow an 'img:', 'txt:' or 'emb:'")
            if token is None:
                raise self.mistake(at, f"'{rest.split()[0]}' is not an operand: give {OPERANDS}")
            tokens.append(token)
            at = end
        return tokens
