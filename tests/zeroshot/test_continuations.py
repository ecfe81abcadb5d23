"""Continuations equal whole texts that are encoded by the models' own code."""

import warnings
from pathlib import Path

import clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from prefixcap.encoders import Encoder, load_encoder
from prefixcap.zeroshot.continuations import Continuations

PAIRS = [
    ("Image of a", " red star"),
    ("Image of a zeb", "ra"),  # one word piece of CLIP
    ("Image of a", "n eagle"),
    ("IMAGE of A", "B c"),
    ("the sun", "flowers, in"),
    ("it", "'s"),
    ("it'", "s"),
    ("they'", "re"),
    ("dogs'", "'"),
    ("do", "n't"),
    ("year 19", "84"),
    ("at 3.", "5%"),
    ("a dog", "."),
    ("a dog.", ".."),
    ("a dog .", ". b"),
    ('say "', "'s"),
    ("a caf", "é"),
    ("a café", " au lait"),
    ("a cafe", "\u0301"),  # a combining accent
    ("an e", "\u0301 at"),
    ("Ã", "©"),  # é, if read as Latin 1
    ("a \ufffd", "\ufffd"),
    ("one fi", "sh"),
    ("one ﬁ", "sh"),
    ("犬", "と猫"),
    ("a 🐕", "\u200d🦺"),
    ("salt &am", "p; pepper"),
    ("salt &", "amp; pepper"),
    ("salt &amp;am", "p;lt;b"),
    ("salt &#3", "8; pepper"),
    ("a < b &Atilde;", "&copy; c"),
    ("a &Atilde;", "&copy; <"),
    ("a &nbsp", "; b"),
    ("a &#3", "2; b"),
    ("a  ", "  b"),
    ("a\n", " \n b"),
    ("a\tb", "c\r\nd"),
    ("  a", "b  "),
    ("\x1b[3", "6m red"),
    ("a\x00", "b"),
    ("a \x07re", "d"),
    ("", "red"),
    ("", " "),
    ("", ""),
    ("a red", ""),
    (" ", "star"),
    ("a <|endoftext|> b", " c"),
    ("a <|endof", "text|> b"),
    ("a <|startof", "text|> b"),
    ("a b " * 37, "c"),
    ("a b " * 37 + "c", " d"),
    ("a b " * 60, " d"),
    ("a", " b" * 90),
]

# fmt: off
FRAGMENTS = st.sampled_from([
    "a", "A", "red", "zeb", "ra", "'s", "'", "n't", ".", ",", "-", "_", "19", "8", "&am", "p;", "&lt", ";", "#38", "<",
    ">", "|", "<|endof", "text|>", "é", "Ã", "©", "\u0301", "犬", "ﬁ", "ß", " ", "  ", "\n", "\x1b[", "1m", "\x00",
])
# fmt: on
TEXTS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=6).map("".join)


@pytest.fixture(scope="module", params=["clip", "transformers"])
def encoder(request: pytest.FixtureRequest, clip_file: Path, clip_folder: Path) -> Encoder:
    return load_encoder(f"clip:{clip_file}" if request.param == "clip" else f"transformers:{clip_folder}")


@torch.no_grad()
def whole(encoder: Encoder, texts: list[str]) -> Tensor:
    """The texts read whole: with OpenAI's models by clip's own code, padded as it does, otherwise by transformers'."""
    if encoder.identity.name.startswith("clip:"):
        return normalize(encoder._model.encode_text(clip.tokenize(texts, truncate=True)), dim=-1)  # type: ignore[attr-defined]
    return normalize(torch.cat([encoder.encode_texts([text]) for text in texts]), dim=-1)


def test_continuations_equal_whole_texts(encoder: Encoder) -> None:
    contexts, pieces = zip(*PAIRS, strict=True)
    found = Continuations(encoder).encode(contexts, range(len(PAIRS)), pieces)
    expected = whole(encoder, [context + piece for context, piece in PAIRS])
    wrong = [pair for pair, distance in zip(PAIRS, (found - expected).abs().amax(1), strict=True) if distance > 1e-5]
    assert not wrong
    assert not found.requires_grad and not found.is_inference() and found.dtype == torch.float32


def test_all_pieces_after_all_contexts(encoder: Encoder) -> None:
    contexts, pieces = [pair[0] for pair in PAIRS[::3]], [pair[1] for pair in PAIRS[::2]]
    continuations = Continuations(encoder)
    for order in (1, -1):  # the second time word pieces are known already
        places = [(place, piece) for place in range(len(contexts)) for piece in pieces][::order]
        found = continuations.encode(contexts, [place for place, _ in places], [piece for _, piece in places])
        texts = sorted({contexts[place] + piece for place, piece in places})
        expected = dict(zip(texts, whole(encoder, texts), strict=True))
        rows = torch.stack([expected[contexts[place] + piece] for place, piece in places])
        torch.testing.assert_close(found, rows, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(context=TEXTS, pieces=st.lists(TEXTS, min_size=1, max_size=4))
@example(context="a &Atilde;", pieces=["&copy; <"])
def test_any_text(encoder: Encoder, context: str, pieces: list[str]) -> None:
    found = Continuations(encoder).encode([context], [0] * len(pieces), pieces)
    expected = whole(encoder, [context + piece for piece in pieces])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_encoder_that_is_not_causal(siglip_folder: Path) -> None:
    encoder = load_encoder(f"transformers:{siglip_folder}")
    found = Continuations(encoder).encode(["a red", "a"], [0, 1, 1], [" circle", " circle", ""])
    with warnings.catch_warnings():
        expected = normalize(encoder.encode_texts(["a red circle", "a circle", "a"]), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not found.is_inference()
