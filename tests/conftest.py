"""What several test modules need: small models, the project's folder, and the shared photographs."""

import gc
import json
import os
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prefixcap.captioner import Captioner
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, Tuning, load_tokenizer

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: tests listen for what is sent anywhere

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("PREFIXCAP_SHARED_DATA", ROOT.parent / "shared" / "data"))

DURATIONS = ROOT / "tests" / "durations.json"
MEASURED = Counter[str]()  # seconds by test, of this session

IDENTITY = EncoderIdentity(name="clip:nowhere.pt", digest="0" * 64, preprocessing="none", dim=16)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-durations", action="store_true", help="keep in tests/durations.json how long tests take")


def kept_durations() -> dict[str, float]:
    """Seconds by test, setup included, of those that take a second or more, in the last run of `make durations`."""
    durations: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8"))
    return durations


@pytest.hookimpl(trylast=True)  # after those that -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: were they the last, all processes but one would wait for them."""
    durations, files = kept_durations(), Counter[Path]()
    for item in items:
        files[item.path] += durations.get(item.nodeid, 0)
    items.sort(key=lambda item: -files[item.path])


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported is no garbage: to look through all of it takes half a second each time


def pytest_unconfigure() -> None:
    gc.unfreeze()  # at the end, libraries complain of what is left


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    MEASURED[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("keep_durations") and not hasattr(session.config, "workerinput"):
        durations = {test: round(MEASURED[test], 1) for test in sorted(MEASURED) if MEASURED[test] >= 1}
        DURATIONS.write_text(json.dumps(durations, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def slow_after(fast: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test, of which only the first `fast` are for the fast layer."""
    sets = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*one, marks=[pytest.mark.slow] if number >= fast else []) for number, one in enumerate(sets)]


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED}; PREFIXCAP_SHARED_DATA names another folder")
    return SHARED


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two workers, to which this process is connected."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False,
        _system_config={"worker_niceness": 0},  # by Ray's 15, other tests leave the workers hardly any processor time
    )  # fmt: skip
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def run_script(name: str) -> None:
    """Run "train", "eval" and others of prefixcap/commands, or a module such as "data_prep.embed", in this process."""
    runpy.run_module(name if "." in name else f"prefixcap.commands.{name}", run_name="__main__")


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script with options that are a mistake, by its name or as a module; give its one line on stderr.

    In this process: starting Python anew for each mistake would take most of the time of all tests.
    """

    def run(script: str, *options: str) -> str:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *options])
        with pytest.raises(SystemExit) as stopped:
            run_script(script)
        printed = capsys.readouterr().err
        assert stopped.value.code == 2 and printed.count("\n") == 1 and printed.startswith("error: "), printed
        return printed

    return run


def assert_equal(one: Any, other: Any, place: str) -> None:
    """Equal bit for bit, all the way down."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_equal(one[name], other[name], f"{place}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}/{number}")
    else:
        assert one == other, place


def small_lm(tuning: Tuning = "frozen", seed: int = 0) -> LanguageModel:
    """A GPT-2 with random weights and the small world's tokenizer."""
    tokenizer = load_tokenizer("demo")
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=96, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LanguageModel(GPT2LMHeadModel(config), tokenizer, "random", tuning)


def small_captioner(tuning: Tuning = "frozen", mapper: str = "transformer", seed: int = 0) -> Captioner:
    """A captioner with random weights that reads 16-dimensional embeddings."""
    lm = small_lm(tuning, seed)
    options = {"name": mapper, "prefix_length": 4} | (
        {"clip_length": 3, "layers": 2} if mapper == "transformer" else {}
    )
    return Captioner(lm, IDENTITY, options)


def plain_loss(
    captioner: Captioner, embedding: torch.Tensor, tokens: list[int], before: list[int] | None = None
) -> torch.Tensor:
    """Negative log-probability of a caption's tokens, read alone after its own prefix, by transformers' own head.

    The tokens `before` are read before the prefix."""
    model = captioner.language_model.model
    embed = model.get_input_embeddings()
    ahead, words = (embed(torch.tensor([ids], dtype=torch.long)) for ids in (before or [], tokens[:-1]))
    prefix = torch.cat((ahead, captioner.prefix(embedding.view(1, -1))), dim=1)
    logits = model(inputs_embeds=torch.cat((prefix, words), dim=1)).logits[0, prefix.shape[1] - 1 :]
    return -logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].sum()
