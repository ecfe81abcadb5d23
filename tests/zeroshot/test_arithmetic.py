"""Arithmetic of embeddings against Python's own, and captions of what it comes to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefixcap.captioner import Captioner
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.zeroshot.arithmetic import arithmetic, embed_expressions, parse
from prefixcap.zeroshot.zerocap import ZeroCap


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Two pictures, their embeddings in two splits of a store, and a store of another encoder."""
    root, generator = tmp_path_factory.mktemp("arithmetic"), np.random.default_rng(0)
    for name in ("a.jpg", "my photo.png"):
        draw(random_scene(generator), generator).save(root / name)
    embeddings = torch.stack([alone(encoder, root / name) for name in ("a.jpg", "my photo.png")])
    records = [ImageRecord(1, "a.jpg", "train", ("A.",)), ImageRecord(22, "my photo.png", "val", ("B.",))]
    for store, identity in (("store", encoder.identity), ("other", replace(encoder.identity, digest="0" * 64))):
        write_store(root / store, identity, records, embeddings)
    (root / "text.jpg").write_text("no picture")
    return root


def write_store(path: Path, identity: EncoderIdentity, records: list[ImageRecord], embeddings: torch.Tensor) -> None:
    writer = StoreWriter(path, identity, "pictures", path.parent, "job", 1)
    writer.write_piece(0, 0, 1, records, {"images/embedding": embeddings.half().numpy()}, ())
    join(path)


def alone(encoder: Encoder, file: Path) -> torch.Tensor:
    """The embedding of one picture."""
    return encoder.encode_images(encoder.preprocess(Image.open(file))[None])[0].clone()


# ---- expressions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("img:a.jpg - img:b.jpg + txt:'a night' ", [(1, "img", "a.jpg"), (-1, "img", "b.jpg"), (1, "txt", "a night")]),
        (
            "0.5*img:\"my photo.jpg\" + 2 * (txt:'image of a day' - emb:stores/demo-demo#17)",
            [(0.5, "img", "my photo.jpg"), (2, "txt", "image of a day"), (-2, "emb", "stores/demo-demo#17")],
        ),
        ("img:a-b+c.jpg-img:c.jpg", [(1, "img", "a-b+c.jpg"), (-1, "img", "c.jpg")]),
        ("txt:a-0.5*txt:b+-.5*txt:c", [(1, "txt", "a"), (-0.5, "txt", "b"), (-0.5, "txt", "c")]),
        ("-img:C:\\a.jpg", [(-1, "img", "C:\\a.jpg")]),
        ('- -2*-3e1*txt:"it\'s"', [(-60, "txt", "it's")]),
        ("-(img:a-(img:b-(img:c)))", [(-1, "img", "a"), (1, "img", "b"), (-1, "img", "c")]),
        ("(img:a(1).jpg)", None),  # a name with brackets needs quotes
    ],
)
def test_expressions_read_by_hand(expression: str, terms: list[tuple[float, str, str]] | None) -> None:
    if terms is None:
        with pytest.raises(InputError):
            parse(expression)
    else:
        assert [(term.weight, term.kind, term.name) for term in parse(expression)] == terms


NAMES = ["img:a.jpg", "img:'my photo (2).jpg'", "txt:night", 'txt:"it\'s - night"', "emb:x-y/z#1-7", "img:a-b+c.jpg"]
VECTORS = np.random.default_rng(0).normal(size=(len(NAMES), 4))
SPACES = st.sampled_from(["", " ", "  "])

# An expression as text, and as a vector that Python's operators made.
expressions = st.recursive(
    st.sampled_from([(name, vector) for name, vector in zip(NAMES, VECTORS, strict=True)]),
    lambda part: st.one_of(
        st.builds(lambda a, x, y, b: (f"({a[0]}{x}+{y}{b[0]})", a[1] + b[1]), part, SPACES, SPACES, part),
        st.builds(lambda a, x, y, b: (f"({a[0]}{x}-{y}{b[0]})", a[1] - b[1]), part, SPACES, SPACES, part),
        st.builds(lambda a, x: (f"-{x}{a[0]}", -a[1]), part, SPACES),
        st.builds(lambda w, x, y, a: (f"{w}{x}*{y}{a[0]}", w * a[1]), st.floats(0, 9), SPACES, SPACES, part),
    ),
    max_leaves=12,
)


@given(expressions)
def test_expressions_come_to_what_python_makes_of_them(expression: tuple[str, np.ndarray]) -> None:
    text, vector = expression
    of_names = {tuple(parse(name)[0][1:3]): row for name, row in zip(NAMES, VECTORS, strict=True)}
    total = sum((term.weight * of_names[term.kind, term.name] for term in parse(text)), np.zeros(4))
    np.testing.assert_allclose(total, vector, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("expression", "message", "character"),
    [
        ("", "the expression is empty", None),
        ("  \n", "the expression is empty", None),
        ("img:a + photo:b.jpg", "unknown operand 'photo:b.jpg'", 9),
        ("img:a - b.jpg", "'b.jpg' is not an operand", 9),
        ("img:a - txt:'b", "this quote is not closed", 13),
        ("txt:b'", "this quote is not closed", 6),
        ("img:a - (txt:b + 2*(txt:c)", "this bracket is not closed", 9),
        ("img:a - txt:b)", "this bracket was not opened", 14),
        ("img: a", "'a' is not an operand", 6),
        ("txt:''", "'txt:' names nothing", 1),
        ("2 img:a", "a weight needs '*'", 2),
        ("img:a - 1", "a weight needs '*'", 10),
        ("(img:a)*2", "a weight comes first", 8),
        ("img:a img:b", "'+' or '-' is missing before 'img:b'", 7),
        ("img:a +", "an operand is missing", 8),
        ("img:a - *txt:b", "an operand is missing before '*'", 9),
        ("(" * 9999 + "img:a" + ")" * 9999, "too many nested brackets", None),
    ],
)
def test_mistakes_in_expressions(expression: str, message: str, character: int | None) -> None:
    with pytest.raises(InputError) as mistake:
        parse(expression)
    assert message in str(mistake.value) and "\n" not in str(mistake.value)
    assert character is None or f"at character {character} of the expression" in str(mistake.value)


# ---- embeddings --------------------------------------------------------------------------------------


def test_embeddings_are_those_of_numpy(encoder: Encoder, folder: Path) -> None:
    a, b = (alone(encoder, folder / name).double().numpy() for name in ("a.jpg", "my photo.png"))
    text = encoder.encode_texts(["a night"])[0].double().numpy()
    length_a, length_b, length_text = (float(np.linalg.norm(vector)) for vector in (a, b, text))
    of_both = (length_a + length_b) / 2
    # Of what is stored, half precision is left; the result is as long as the images are on average.
    cases: dict[str, tuple[np.ndarray, float, float]] = {
        "img:a.jpg - img:'my photo.png' + txt:'a night'": (a - b + text, of_both, 1e-4),
        "0.5*img:a.jpg + 2*(txt:'a night' - emb:store#22)": (0.5 * a + 2 * text - 2 * b, of_both, 0.02),
        "emb:store#1 - -3*emb:store#22": (a + 3 * b, of_both, 0.02),
        "-txt:'a night'": (-text, length_text, 1e-4),
        f"img:'{folder / 'a.jpg'}'": (a, length_a, 1e-4),
    }  # fmt: skip
    found = embed_expressions(list(cases), encoder, folder).double().numpy()
    for row, (total, length, tolerance) in zip(found, cases.values(), strict=True):
        np.testing.assert_allclose(row, total * length / np.linalg.norm(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("txt:a + img:no.jpg", "no.jpg: missing file, at character 9 of the expression"),
        ("img:text.jpg", "text.jpg: not an image, at character 1"),
        ("emb:store", "'emb:store' is not an image of a store"),
        ("emb:store#1 - emb:store#7", "store has no image 7, at character 15"),
        ("emb:no#1", "there is no feature store at"),
        ("emb:other#1", "but demo (weights"),
        ("img:a.jpg - img:a.jpg", "comes to nothing"),
        ("0.1*txt:a + 0.2*txt:a - 0.3*txt:a", "comes to nothing"),
        ("0*txt:a", "comes to nothing"),
        ("1e999*txt:a", "comes to no finite embedding"),
    ],
)
def test_mistakes_in_operands(expression: str, message: str, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(InputError) as mistake:
        embed_expressions(["txt:right", expression], encoder, folder)
    assert message in str(mistake.value) and "\n" not in str(mistake.value)


# ---- captions ----------------------------------------------------------------------------------------


def untrained(encoder: Encoder) -> Captioner:
    torch.manual_seed(0)
    return Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 4})


def zerocap(encoder: Encoder) -> ZeroCap:
    return ZeroCap(encoder, load_language_model("demo"), beams=2, iterations=1, candidates=8, max_tokens=6)


@pytest.mark.parametrize("make", [untrained, zerocap])
def test_what_comes_to_an_image_gets_its_caption(
    make: Callable[[Encoder], Captioner | ZeroCap], encoder: Encoder, folder: Path
) -> None:
    captioner = make(encoder)
    images = [folder / "a.jpg", folder / "my photo.png"]
    first, second = captioner.caption(images)
    assert first != second
    a, b = (f"img:'{image}'" for image in images)
    assert arithmetic(a, captioner) == first
    assert arithmetic(f"3*{a} - 2*({a} - {b}) - 2*{b}", captioner) == first
    assert arithmetic(f"{a} + {b} - {a}", captioner) == second


def test_options_are_those_of_the_captioner(encoder: Encoder, folder: Path) -> None:
    expression = f"img:'{folder / 'a.jpg'}'"
    assert len(arithmetic(expression, untrained(encoder), decode="greedy", max_tokens=2).split()) <= 2


def test_a_captioner_of_regions_cannot_read_what_comes_out(encoder: Encoder) -> None:
    mapper = {"name": "query", "features": "regions", "prefix_length": 4, "width": 16, "layers": 1, "heads": 2}
    captioner = Captioner(load_language_model("demo"), encoder.identity, mapper)
    with pytest.raises(InputError, match="reads images/regions"):
        arithmetic("txt:a", captioner)
