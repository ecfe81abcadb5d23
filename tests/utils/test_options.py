"""Options by the signature that declares them: names, kinds and ranges."""

import ast
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import prefixcap
from prefixcap.commands.common.hydra_main import OPTIONS
from prefixcap.decoding import DECODERS, Rules, decoder_options, own_options
from prefixcap.errors import InputError, OptionError, spell_options
from prefixcap.utils.options import check_options, check_value, kind_of
from prefixcap.zeroshot.magic import Magic
from prefixcap.zeroshot.zerocap import ZeroCapOptions
from tests.conftest import ROOT

Unit = Annotated[float, Interval(gt=0.0, le=1.0)]


def declared(
    first: object,
    count: Annotated[int, Interval(ge=1, le=9)] = 1,
    share: Unit = 0.5,
    scale: Annotated[float, Gt(0.0)] | None = None,
    kind: Literal["a", "b"] = "a",
    text: str = "",
    flag: bool = False,
    words: Sequence[str] = (),
    other: torch.Generator | None = None,
) -> None:
    """Something that takes options."""


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"count": np.int64(3)}, {"count": 3}),
        ({"share": 1}, {"share": 1.0}),
        ({"share": np.float32(0.5), "scale": None}, {"share": 0.5, "scale": None}),
        ({"words": OmegaConf.create(["red", "blue"])}, {"words": ["red", "blue"]}),
        ({"kind": "b", "text": "x", "flag": True}, {"kind": "b", "text": "x", "flag": True}),
    ],
)
def test_values_become_plain_ones(options: dict[str, Any], plain: dict[str, Any]) -> None:
    checked = check_options("it", declared, options, positional=1)
    assert checked == plain and [type(value) for value in checked.values()] == [type(value) for value in plain.values()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "it: count must be between 1 and 9, not 0"),
        ({"count": 10}, "it: count must be between 1 and 9, not 10"),
        ({"count": True}, "it: count must be an integer between 1 and 9, not True"),
        ({"count": 2.0}, "it: count must be an integer between 1 and 9, not 2.0"),
        ({"count": "three"}, "it: count must be an integer between 1 and 9, not 'three'"),
        ({"count": None}, "it: count must be an integer between 1 and 9, not None"),
        ({"count": np.array([1, 2])}, "it: count must be an integer between 1 and 9, not array([1, 2])"),
        ({"share": 0.0}, "it: share must be above 0.0 and at most 1.0, not 0.0"),
        ({"share": math.nan}, "it: share must be a finite number above 0.0 and at most 1.0, not nan"),
        ({"share": "a"}, "it: share must be a finite number above 0.0 and at most 1.0, not 'a'"),
        ({"scale": math.inf}, "it: scale must be a finite number above 0.0, not inf"),
        ({"scale": 10**400}, "it: scale must be a finite number above 0.0, not 1000"),
        ({"kind": "c"}, "it: unknown kind 'c': choose one of a, b"),
        ({"kind": ["a"]}, "it: unknown kind '['a']': choose one of a, b"),
        ({"text": b"x"}, "it: text must be a text, not b'x'"),
        ({"flag": 1}, "it: flag must be true or false, not 1"),
        ({"words": "red"}, "it: words must be a list, not 'red'"),
        ({"words": ["red", 3]}, "it: words[1] must be a text, not 3"),
        ({"counts": 3}, "it: got an unexpected keyword argument 'counts'; its options: count, share, scale"),
        ({"first": 3}, "it: multiple values for argument 'first'"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        check_options("it", declared, options, positional=1)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_names_that_are_only_imported_for_type_checkers_are_no_error() -> None:
    def of_a_user(prefix: "Unheard", beams: "int" = 3) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert check_options("it", of_a_user, {"beams": 2}, positional=1) == {"beams": 2}


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.lists(st.integers())))
def test_any_value_is_taken_or_told(value: object) -> None:
    """The bounds by hand, for whatever somebody may give."""
    fits = type(value) in (int, float) and math.isfinite(value) and 0.0 < value <= 1.0  # type: ignore[arg-type, operator]
    try:
        assert check_value("share", value, Unit) == value and fits
    except InputError as error:
        assert not fits and "\n" not in str(error)


def numbers_of(annotations: dict[str, Any]) -> list[str]:
    return [name for name, annotation in annotations.items() if kind_of(annotation) in (int, float)]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, "a", True, None, [1], b"1", 1j, -(10**30)])
def test_no_number_of_any_part_takes_what_is_none(wrong: object) -> None:
    """Also of those that are added later: every number has its range in the annotation."""
    taken = 0
    for source, make, names in (
        *(
            (name, decoder, numbers_of({key: option.annotation for key, option in own_options(name).items()}))
            for name, decoder in DECODERS.items()
        ),
        ("rules", Rules, [name for name, option in decoder_options("greedy").items() if option.kind is not str]),
        ("zerocap", ZeroCapOptions, numbers_of(ZeroCapOptions.__annotations__)),
        ("magic", Magic, numbers_of(Magic.__init__.__annotations__)),
    ):
        positional = {"rules": 0, "zerocap": 0, "magic": 2}.get(source, 3)
        for name in names:
            with pytest.raises(InputError, match=rf"{name} must be .*, not ") as error:
                check_options(source, make, {name: wrong}, positional)
            assert "\n" not in str(error.value)
            taken += 1
    assert taken > 30


def test_options_are_spelled_as_they_are_typed() -> None:
    def mistake() -> None:
        raise OptionError("too few beams", beams=10)

    for spelling, spelled in (
        (("--set {}".format, "give"), "too few beams: give --set beams=10"),
        (("decode.{}".format,), "too few beams: set decode.beams=10"),
    ):
        with pytest.raises(InputError) as error, spell_options(*spelling):
            mistake()
        assert str(error.value) == spelled
    with pytest.raises(InputError, match=r"^too few beams: set beams=10$"):
        mistake()


def test_values_of_options_are_spelled_for_python_and_for_the_command_line() -> None:
    error = OptionError("no", dtype="float32", quantization=None, checkpointing=False)
    assert str(error) == "no: set dtype='float32' or quantization=None or checkpointing=False"
    typed = error.spelled("lm.{}".format)
    assert typed == "no: set lm.dtype=float32 or lm.quantization=null or lm.checkpointing=false"


def test_errors_of_the_library_speak_python() -> None:
    """No message outside of commands/ tells a Python user to set an option of the command line, but for a command's."""
    typed = re.compile(
        r"\b(model\.(?!resize|safetensors)|lm\.|trainer\.|optimizer\.|decode\.|scst\.)|lm_tuning|data[.=]|ckpt=|--\w"
    )
    root = Path(prefixcap.__file__).parent
    helpers_of_commands = {"named.py", "spice_setup.py"}
    messages = 0
    for file in sorted(root.rglob("*.py")):
        if file.is_relative_to(root / "commands") or file.name in helpers_of_commands:
            continue
        for raised in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(raised, ast.Raise) and raised.exc is not None:
                constants = [node.value for node in ast.walk(raised.exc) if isinstance(node, ast.Constant)]
                text = " ".join(value for value in constants if isinstance(value, str))
                text = re.sub("pip install.*", "", text)  # whose options are pip's
                messages += bool(text)
                assert "data_prep" in text or not typed.search(text), (file.name, text)
    assert messages > 200


def test_options_that_correct_a_mistake_are_those_of_the_command_line() -> None:
    """Every OptionError of the library names options that are either typed like this or translated for the commands."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        configs = [compose("train"), compose("train", ["model=cross_attention"])]
    missing = object()
    for option in OPTIONS.values():
        assert any(OmegaConf.select(config, option, default=missing) is not missing for config in configs), option
    raised = {
        keyword.arg
        for file in Path(prefixcap.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "OptionError"
        for keyword in call.keywords
    }
    assert raised == OPTIONS.keys() | {"beams", "rerank"}  # of decoding, which `spell_options` translates


def test_bounds_of_one_side_and_below() -> None:
    assert check_value("n", 0, Annotated[int, Ge(0)]) == 0
    with pytest.raises(InputError, match="n must be at least 0 and below 6, not 6"):
        check_value("n", 6, Annotated[int, Interval(ge=0, lt=6)])
