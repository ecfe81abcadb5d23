"""Checkpoints, published weights and encoders that somebody made to do harm, or that are damaged: one line each."""

import copy
import io
import json
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.checkpoints.files import read_checkpoint
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model, load_tokenizer
from prefixcap.weights import require_tensors
from tests.conftest import IDENTITY
from tests.language_models import save_language_model
from tests.test_captioner import checkpoint

Content = dict[str, Any]


@pytest.fixture(scope="module")
def frozen() -> Captioner:
    torch.manual_seed(0)
    options = {"name": "transformer", "prefix_length": 3, "clip_length": 2, "layers": 1}
    trained_on = {"data": "test", "store": "stores/test", "images": {"train": 3}}
    return Captioner(load_language_model("demo"), IDENTITY, options, trained_on=trained_on).eval()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = save_language_model("gpt2", tmp_path_factory.mktemp("gpt2"))
    return Captioner(load_language_model(folder, "full"), IDENTITY, {"name": "mlp", "prefix_length": 2}).eval()


@pytest.fixture(scope="module")
def contents(frozen: Captioner, tuned: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Content]:
    """What is in a good checkpoint, to be spoiled."""
    folder = tmp_path_factory.mktemp("good")
    files = {"frozen": checkpoint(frozen, folder / "frozen.ckpt"), "full": checkpoint(tuned, folder / "full.ckpt")}
    return lambda tuning: torch.load(files[tuning], weights_only=True)


def refused(content: object, path: Path) -> str:
    """The one line that a checkpoint with this content is refused by."""
    torch.save(content, path)
    with pytest.raises(InputError) as told:
        prefixcap.load(path)
    line = str(told.value)
    assert "\n" not in line and len(line) < 1000 and str(path) in line, line
    return line


# --- what brings code


@pytest.fixture
def answers_yes(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Somebody who answers every question with yes; nothing may be asked."""
    stdin = io.StringIO("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", stdin)
    return stdin


def with_code(config: dict[str, Any], marker: Path) -> tuple[dict[str, Any], str]:
    """A configuration that is no model of transformers' and names a class, and the code of that class."""
    names = {"AutoConfig": "conf.Conf", "AutoModelForCausalLM": "conf.Conf", "AutoTokenizer": ["conf.Conf", None]}
    return config | {
        "model_type": "strange",
        "auto_map": names,
    }, f"open({str(marker)!r}, 'w').close()\nclass Conf: ...\n"


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("along", [True, False])
def test_python_in_a_checkpoint_is_not_run(
    along: bool, closed: bool, contents: Callable[[str], Content], answers_yes: io.StringIO, tmp_path: Path
) -> None:
    content = contents("full")
    files = content["prefixcap"]["language_model"]["files"]
    config, code = with_code(json.loads(files["config.json"]), tmp_path / "ran")
    if not along:  # it is to come from the hub
        config["auto_map"] = {"AutoConfig": "someone/strange--conf.Conf"}
    files |= {"config.json": json.dumps(config)} | ({"conf.py": code} if along else {})
    if closed:
        answers_yes.close()
    line = refused(content, tmp_path / "stranger.ckpt")
    assert ("brings a file 'conf.py'" if along else "needs code of its own, which is never run") in line
    assert not (tmp_path / "ran").exists()
    assert closed or answers_yes.tell() == 0


def test_python_beside_models_is_not_run(answers_yes: io.StringIO, tmp_path: Path) -> None:
    folder = Path(save_language_model("gpt2", tmp_path / "lm"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    config, code = with_code(json.loads((folder / "config.json").read_text()), tmp_path / "ran")
    (folder / "conf.py").write_text(code)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "conf.Conf"}}))
    strange = tokenizer | {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["conf.Conf", "conf.Conf"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(strange))
    for load in (load_language_model, load_tokenizer, lambda name: load_encoder(f"transformers:{name}")):
        with pytest.raises(InputError) as told:
            load(str(folder))
        assert "\n" not in str(told.value) and str(folder) in str(told.value)
    assert not (tmp_path / "ran").exists() and answers_yes.tell() == 0


@pytest.mark.parametrize(
    "name", ["../outside.json", "/tmp/outside.json", "a/config.json", "adapter_config.json", "modeling.py", "..", "", 3]
)
def test_only_files_of_a_tokenizer_come_along(name: object, contents: Callable[[str], Content], tmp_path: Path) -> None:
    content = contents("full")
    content["prefixcap"]["language_model"]["files"][name] = "{}"
    refused(content, tmp_path / "stranger.ckpt")
    assert {file.name for file in tmp_path.iterdir()} == {"stranger.ckpt"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("config.json", '{"model_type": "strange"}'),
        ("config.json", '{"model_type": ["gpt2"]}'),
        ("config.json", '{"model_type": "clip"}'),
        ("config.json", '{"model_type": "gpt2", "n_layer": ' + "9" * 5000 + "}"),
        ("config.json", '{"model_type": "gpt2", "n_layer": 1000000000}'),
        ("config.json", '{"model_type": "qwen2", "num_hidden_layers": 1000000000}'),
        ("config.json", '{"model_type": "gpt2", "num_labels": 1000000000}'),
        ("config.json", '{"model_type": "gpt2", "vocab_size": 1000000000000}'),
        ("config.json", '{"model_type": "gpt2", "n_positions": 1000000000000}'),
        ("config.json", '{"model_type": "gpt2", "n_head": 0}'),
        ("config.json", '{"model_type": "gpt2", "n_embd": "wide"}'),
        ("config.json", '{"model_type": "gpt_neo", "hidden_size": 8, "max_position_embeddings": 1000000}'),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", '{"vocab_file": "/etc/passwd"}'),
        ("tokenizer_config.json", '{"fast_tokenizer_files": ["../tokenizer.9.json"]}'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", 3),
        ("config.json", None),
    ],
)
def test_files_of_a_language_model_that_are_none(
    file: str, text: object, contents: Callable[[str], Content], tmp_path: Path
) -> None:
    content = contents("full")
    content["prefixcap"]["language_model"]["files"][file] = text
    refused(content, tmp_path / "stranger.ckpt")


def test_a_kernel_that_a_configuration_names_is_not_fetched(
    contents: Callable[[str], Content], tuned: Captioner, tmp_path: Path
) -> None:
    content = contents("full")
    files = content["prefixcap"]["language_model"]["files"]
    config = json.loads(files["config.json"]) | {"attn_implementation": "someone/kernel"}
    files["config.json"] = json.dumps(config)
    torch.save(content, tmp_path / "stranger.ckpt")
    embeddings = torch.randn(2, 16)
    expected = tuned.caption(embeddings, "greedy", max_tokens=4)
    assert prefixcap.load(tmp_path / "stranger.ckpt").caption(embeddings, "greedy", max_tokens=4) == expected
    folder = Path(save_language_model("gpt2", tmp_path / "lm"))
    (folder / "config.json").write_text(json.dumps(config))
    assert load_language_model(str(folder)).model.config._attn_implementation == "sdpa"


def test_an_adapter_does_not_lead_elsewhere(tmp_path: Path) -> None:
    folder = Path(save_language_model("gpt2", tmp_path / "lm"))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "someone/else", "megatron_core": "antigravity"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    for load in (load_language_model, lambda name: load_encoder(f"transformers:{name}")):
        with pytest.raises(InputError, match=r"adapter beside it|neither 'clip' nor 'siglip'"):
            load(str(folder))


class Program(torch.nn.Module):
    """TorchScript that makes a file as it is loaded."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker, self.made = marker, torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker = state[0]
        self.training = state[1]
        self.made = torch.from_file(state[0], shared=True, size=4)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_a_program_that_a_checkpoint_names_as_its_encoder_is_not_run(tmp_path: Path) -> None:
    marker, program = tmp_path / "ran", tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(Program(str(marker))), program)
    torch.jit.load(program)
    assert marker.exists()  # it does harm
    marker.unlink()
    with pytest.raises(InputError, match=r"ViT-B-32\.pt' cannot be loaded .* give a CLIP state dict") as told:
        load_encoder(f"clip:{program}")
    assert "\n" not in str(told.value) and not marker.exists()


# --- descriptions


ODD: list[Any] = [
    None,
    [],
    {},
    "",
    "x\x1b[2J",
    "9",
    0,
    -1,
    2**40,
    10**9,
    0.5,
    float("nan"),
    True,
    [[]],
    {"a": {}},
    b"x",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, within in inner for place in places(within, (*path, key)))]


def spoiled(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """A copy with another value in one place; `places` stands for: without it."""
    if not path:
        return odd
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if odd is places:
        del inner[path[-1]]
    else:
        inner[path[-1]] = odd
    return value


def test_odd_values_in_any_place_of_a_description(frozen: Captioner, contents: Callable[[str], Content]) -> None:
    content = contents("frozen")
    weights = {name.removeprefix("captioner."): weight for name, weight in content["state_dict"].items()}
    good = content["prefixcap"]
    lm: LanguageModel = frozen.language_model
    took: list[Any] = []
    for path in places(good):
        for odd in [*ODD, places]:
            if not path and odd is places:
                continue
            try:
                Captioner.build(spoiled(good, path, odd), lm, weights, "stranger.ckpt")
            except InputError as error:
                line = str(error)
                assert line.startswith("stranger.ckpt") and "\n" not in line and "\x1b" not in line, line
            else:
                took.append((path, odd))
    taken = {path for path, _ in took}
    assert (("mapper", "prefix_length"), 10**9) not in took and (("encoder", "dim"), 2**40) not in took
    # Numbers of images, and names, may be others.
    assert taken <= {
        ("encoder", "name"), ("encoder", "preprocessing"), ("encoder", "digest"), ("language_model", "name"),
        ("language_model", "dtype"), ("normalize_embeddings",), ("trained_on",), ("trained_on", "data"),
        ("trained_on", "store"), ("trained_on", "images"), ("trained_on", "images", "train"), ("mapper", "layers"),
        ("mapper", "prefix_length"), ("mapper", "clip_length"), ("start_token",),
    }, taken  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("language_model", "tuning"), "half", "language_model.tuning"),
        (("language_model", "quantization"), "2bit", "language_model.quantization"),
        (("language_model", "lora"), {"rank": 8, "beta": 1}, "language_model.lora"),
        (("language_model", "files"), {"config.json": 3}, "language_model.files"),
        (("encoder", "owner"), "me", "encoder.owner: Extra inputs are not permitted"),
        (("mapper", "name"), "os.system", "unknown mapper 'os.system'"),
        (("mapper", "_target_"), "os.system", "unexpected keyword argument '_target_'"),
        (("mapper", "layers"), 10**6, "mapper: layers must be between 1 and 10000"),
        (("mapper", "layers"), 10**4, "layers is 10,000"),
        (("mapper", "clip_length"), 10**9, "mapper: clip_length must be between 1 and 10000"),
        (("mapper", "clip_length"), 10**4, "weight 'mapper.linear.weight'"),
        (("mapper", "heads"), 0, "mapper: heads must be between 1 and 10000"),
        (("mapper", "heads"), 7, "cannot be split into 7 heads"),
        (("mapper", "prefix_length"), "4", "mapper.prefix_length"),
        (("format_version",), 2, "is of format 2, but this version of prefixcap reads format 1"),
    ],
)
def test_descriptions_that_are_none(
    place: tuple[str, ...], value: Any, told: str, contents: Callable[[str], Content], tmp_path: Path
) -> None:
    content = contents("frozen")
    content["prefixcap"] = spoiled(content["prefixcap"], place, value)
    assert told in refused(content, tmp_path / "stranger.ckpt")


def test_lists_that_are_few_but_endless_to_read(contents: Callable[[str], Content], tmp_path: Path) -> None:
    content = contents("frozen")
    wide: list[Any] = []
    for _ in range(60):
        wide = [wide, wide]  # 2**60 lists to whoever follows each
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    for value in (wide, deep):
        content["prefixcap"]["trained_on"]["more"] = value
        assert "nested too deeply, or has too many values" in refused(content, tmp_path / "stranger.ckpt")


def test_descriptions_of_older_versions(contents: Callable[[str], Content], tmp_path: Path) -> None:
    """The first version wrote neither a model's precision nor whether it was quantized; tuples came from Python."""
    for tuning in ("frozen", "full"):
        content = contents(tuning)
        del content["prefixcap"]["language_model"]["dtype"]
        torch.save(content, tmp_path / "old.ckpt")
        assert prefixcap.load(tmp_path / "old.ckpt").language_model.dtype == "float32"
    lm = load_language_model("demo")
    made = Captioner(lm, IDENTITY, {"name": "mlp", "prefix_length": 2, "hidden": (8,)}, trained_on={"more": (1, 2)})
    assert prefixcap.load(checkpoint(made, tmp_path / "tuple.ckpt")).mapper_options["hidden"] == (8,)


# --- weights


def test_weights_that_are_none(contents: Callable[[str], Content], tmp_path: Path) -> None:
    content, path = contents("frozen"), tmp_path / "stranger.ckpt"
    state, name = content["state_dict"], "captioner.mapper.linear.weight"
    weight: Tensor = state[name]
    rows, columns = weight.shape
    quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    for odd in (
        3, None, "x", [weight], {"a": weight}, weight.to_sparse(), weight.to("meta"), weight.int(), weight.bool(),
        weight.to(torch.complex64), weight[:1], weight[0], weight * torch.nan, weight / 0, quantized,
        torch.zeros(1).expand(rows, columns),
    ):  # fmt: skip
        assert "linear.weight" in refused(content | {"state_dict": state | {name: odd}}, path)
    for odd_state in (None, [], [weight], {}, {1: weight}, {name: weight}, {b"x": weight}, "x", weight):
        refused(content | {"state_dict": odd_state}, path)
    torch.save(content | {"state_dict": state | {name: weight.double()}}, path)  # it is rounded, as ever
    prefixcap.load(path)


def test_few_numbers_repeated_do_not_pass_for_many() -> None:
    with pytest.raises(InputError, match="weight 'a' is not a dense tensor"):
        require_tensors({"a": torch.zeros(1).expand(10**9, 10**6)}, "x.ckpt")
    shared = torch.zeros(6)
    assert require_tensors({"a": shared.view(2, 3).T, "b": shared[2:]}, "x.ckpt").keys() == {"a", "b"}


ONE, ENDLESS = torch.zeros(1), torch.zeros(1).expand(10**9, 64)
OTHERS: list[Any] = [
    [], {}, None, 3, "x", ONE, {1: 2}, {"state_dict": {}}, {"prefixcap": []}, {"prefixcap": {}, "state_dict": {}},
    {"prefixcap": [], "state_dict": {}}, {"model": {"a": ONE}, "epoch": 3}, {"shared_params": 3},
    {"shared_params": {}, "module": {}}, {"shared_params": {"a": 3}, "module": {"a": ONE}}, {"gpt.x": 3},
    {"gpt.transformer.wte.weight": 3}, {"clip_project.model.0.weight": ONE},
    {"gpt.transformer.wte.weight": ENDLESS, "gpt.transformer.wpe.weight": torch.zeros(4, 64)},
]  # fmt: skip


@pytest.mark.parametrize("content", OTHERS, ids=range(len(OTHERS)))
def test_what_is_no_checkpoint(content: object, tmp_path: Path) -> None:
    refused(content, tmp_path / "other.ckpt")
    refused(content, tmp_path / "other.pt")


def test_archives_that_are_larger_than_they_look(contents: Callable[[str], Content], tmp_path: Path) -> None:
    torch.save(contents("frozen"), tmp_path / "good.ckpt")
    packed = tmp_path / "packed.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "good.ckpt") as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    torch.load(packed, weights_only=True)  # torch unpacks it
    with pytest.raises(InputError, match=r"packed\.ckpt is not a checkpoint .*compressed archive"):
        prefixcap.load(packed)


def test_bytes_changed_at_random(contents: Callable[[str], Content], tmp_path: Path) -> None:
    """Some changes are of a weight's last digits, and do no harm; all others are told."""
    torch.save(contents("frozen"), tmp_path / "good.ckpt")
    good, random_ = (tmp_path / "good.ckpt").read_bytes(), random.Random(0)
    path = tmp_path / "damaged.ckpt"
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(random_.choice((1, 20))):
            damaged[random_.randrange(len(good) if random_.random() < 0.3 else 3000)] = random_.randrange(256)
        path.write_bytes(damaged[: random_.choice((len(good), random_.randrange(len(good))))])
        try:
            read_checkpoint(path)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_pickles_alone(tmp_path: Path) -> None:
    path = tmp_path / "stranger.ckpt"
    for code in (
        pickle.dumps(print), b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02ccollections\nOrderedDict\nq\x00.", b"",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", b"PK\x03\x04", b"PK\x05\x06" + bytes(18),
    ):  # fmt: skip
        path.write_bytes(code)
        with pytest.raises(InputError, match=r"stranger\.ckpt is not a checkpoint") as told:
            prefixcap.load(path)
        assert "\n" not in str(told.value)
