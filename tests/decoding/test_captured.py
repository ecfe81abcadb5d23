"""Searches whose steps are captured, against eager ones. A tape stands in for a CUDA graph: it repeats operations on
the tensors that they were recorded with, whatever has happened to Python's variables since."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prefixcap.decoding import GenerationLimits, captured, decode
from prefixcap.decoding.beam import _BeamSearch
from prefixcap.decoding.clipcap import _ClipCapSearch
from prefixcap.decoding.forced import ForcedWords
from prefixcap.decoding.padded import PaddedPrefix, pad_left
from prefixcap.decoding.search import Search
from prefixcap.decoding.stepwise import _Nucleus, _Stepwise, generate
from prefixcap.language import LanguageModel
from tests.conftest import slow_after
from tests.decoding import random_lm
from tests.language.kinds import ACCEPTED, tiny_model

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {}),
    ("greedy", {"repetition_penalty": 1.3, "no_repeat_ngram": 2}),
    ("greedy", {"bad_words_ids": [[3], [4, 5], [6, 7, 8]]}),
    ("beam", {"beams": 3, "bad_words_ids": [[3], [4, 5], [6, 7, 8]]}),
    ("beam", {"beams": 1}),
    ("beam", {"beams": 3, "num_captions": 3}),
    ("beam", {"beams": 3, "length_penalty": 0.0, "min_tokens": 3, "repetition_penalty": 1.3, "no_repeat_ngram": 2}),
    ("beam", {"beams": 4, "length_penalty": -1.0}),
    ("beam", {"beams": 6, "groups": 3, "diversity": 1.0, "num_captions": 6}),
    ("clipcap", {"beams": 4, "num_captions": 4}),
    ("clipcap_greedy", {}),
    ("nucleus", {"num_captions": 3, "top_k": 5, "temperature": 0.8}),
]


class Tape:
    """Captures on the CPU."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        with _Recording() as recording:
            function()
        for changed, before in reversed(recording.undo):
            changed.copy_(before)

        def replay() -> None:
            self.replayed += 1
            for operation, args, kwargs, result in recording.operations:
                for old, new in zip(tree_leaves(result), tree_leaves(operation(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []
        self.undo: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert operation not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        for index, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed = args[index] if index < len(args) else kwargs[argument.name]
                self.undo.append((changed, changed.clone()))
        result = operation(*args, **kwargs)
        self.operations.append((operation, args, kwargs, result))
        return result


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """Captures on the CPU too, in many sizes; the tapes of every program."""
    made: list[Tape] = []

    def tape(device: torch.device) -> Tape:
        assert device.type == "cpu"
        made.append(Tape())
        return made[-1]

    monkeypatch.setitem(captured.RECORDERS, "cpu", tape)
    monkeypatch.setattr(captured, "_ROWS", 2)
    monkeypatch.setattr(captured, "_POSITIONS", 4)
    yield made


def liked_end(lm: LanguageModel, prefix: Tensor | PaddedPrefix) -> int:
    """A token that the model likes: if it ends captions, they have many lengths."""
    lm.eos_token_id = -1
    with torch.inference_mode():
        endless = torch.tensor(decode_eagerly(lm, prefix, "greedy", max_tokens=8))
    return int(endless[..., 2:].flatten().mode().values)


def decode_eagerly(
    lm: LanguageModel, prefix: Tensor | PaddedPrefix, method: str, **options: Any
) -> list[list[list[int]]]:
    lm.cuda_graphs = False
    try:
        return decode(lm, prefix, method, **options)
    finally:
        lm.cuda_graphs = True


def options_of(method: str, options: dict[str, Any]) -> dict[str, Any]:
    return options | ({"generator": torch.Generator().manual_seed(0)} if method == "nucleus" else {})


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("kind", slow_after(1, ["gpt2", "opt", "llama"]))
def test_same_captions_as_eager(kind: str, method: str, options: dict[str, Any], tapes: list[Tape]) -> None:
    lengths = set()
    for seed in range(2):
        lm = random_lm(kind, seed)
        batches = [torch.randn(size, 3, 32) for size in (7, 7, 7, 3, 1, 7)]
        lm.eos_token_id = liked_end(lm, batches[0])
        if method.startswith("clipcap"):
            lm.tokenizer = OneWord(lm.eos_token_id)
        for batch in batches:
            expected = decode_eagerly(lm, batch, method, max_tokens=12, **options_of(method, options))
            assert decode(lm, batch, method, max_tokens=12, **options_of(method, options)) == expected
            lengths |= {len(caption) for captions in expected for caption in captions}
    assert len(tapes) == 2 and all(tape.captured > 3 and tape.replayed > 20 for tape in tapes)
    assert len(lengths) > 3, "captions of one length only would prove little"


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("kind", slow_after(1, ["gpt2", "opt", "llama"]))
def test_padded_prefixes(kind: str, method: str, options: dict[str, Any], tapes: list[Tape]) -> None:
    """Of many lengths: shorter ones fit the same tapes, a longer one has new ones. Double precision, as a row that is
    padded further is summed in another order."""
    lengths = set()
    for seed in range(2):
        lm = random_lm(kind, seed).double()
        counts = [
            (0, 4, 9, 1, 0, 2, 3),
            (2, 9, 0, 1, 5, 0, 7),
            (0, 4, 1, 0, 0, 1, 3),
            (3, 1, 0),
            (13, 1, 5),
            (1, 12, 2),
        ]
        prefixes = []
        for batch in counts:
            prompts = [torch.randint(1, 40, (count,)).tolist() for count in batch]
            prefixes.append(pad_left(torch.randn(len(batch), 3, 32, dtype=torch.float64), prompts, lm))
        lm.eos_token_id = liked_end(lm, prefixes[0])
        if method.startswith("clipcap"):
            lm.tokenizer = OneWord(lm.eos_token_id)
        for prefix in prefixes:
            assert isinstance(prefix, PaddedPrefix)
            expected = decode_eagerly(lm, prefix, method, max_tokens=12, **options_of(method, options))
            assert decode(lm, prefix, method, max_tokens=12, **options_of(method, options)) == expected
            lengths |= {len(caption) for captions in expected for caption in captions}
    assert len(tapes) == 4 and all(tape.replayed > 5 for tape in tapes)
    assert len(lengths) > 3, "captions of one length only would prove little"


class OneWord:
    """A tokenizer that knows the full stop alone."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.stop]


EAGER = {"ctrl", "gpt_neo, a window as wide as a row", "bert-generation"}
FEW = ["gemma3, mixed", "mistral, window", "gptj", "xglm", "ctrl"]


@pytest.mark.parametrize("kind", slow_after(len(FEW), [*FEW, *(kind for kind in ACCEPTED if kind not in FEW)]))
def test_every_kind_of_model_that_training_takes(kind: str, tapes: list[Tape]) -> None:
    """Windows, rotary positions, experts, cross-attention; or there is a warning, and the captions come eagerly."""
    lm = tiny_model(*ACCEPTED[kind])
    for length in (3, 11):  # shorter and longer than a window
        prefix = torch.randn(4, length, lm.dim)  # copies, as ctrl changes its input in place
        expected = decode_eagerly(lm, prefix.clone(), "beam", beams=3, max_tokens=9)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [decode(lm, prefix.clone(), "beam", beams=3, max_tokens=9) for _ in range(3)] == [expected] * 3
        reasons = [str(warning.message) for warning in caught if "CUDA graphs" in str(warning.message)]
        assert len(reasons) == (not lm.cuda_graphs)
        assert lm.cuda_graphs == (kind not in EAGER), reasons
        lm.cuda_graphs = True


PADDED = [kind for kind in FEW if kind not in EAGER]


@pytest.mark.parametrize("kind", slow_after(len(PADDED), [*PADDED, *sorted(ACCEPTED.keys() - EAGER - {*PADDED})]))
def test_padded_prefixes_of_every_kind_of_model(kind: str, tapes: list[Tape]) -> None:
    """Rows shorter and longer than a window."""
    lm = tiny_model(*ACCEPTED[kind])
    lm.eos_token_id = -1
    prompts = [torch.randint(1, 400, (count,)).tolist() for count in (0, 9, 2, 5)]
    prefix = pad_left(torch.randn(4, 3, lm.dim), prompts, lm)
    expected = decode_eagerly(lm, prefix, "beam", beams=3, max_tokens=9)
    assert [decode(lm, prefix, "beam", beams=3, max_tokens=9) for _ in range(3)] == [expected] * 3
    assert tapes[0].replayed


@pytest.mark.parametrize("method", ["greedy", "beam", "clipcap"])
def test_half_precision(method: str, tapes: list[Tape]) -> None:
    lm = random_lm("llama", 0)
    lm.to(torch.bfloat16)
    prefix = torch.randn(4, 3, 32, dtype=torch.bfloat16)
    expected = decode_eagerly(lm, prefix, method, max_tokens=8)
    assert [decode(lm, prefix, method, max_tokens=8) for _ in range(3)] == [expected] * 3 and tapes[0].replayed


def test_validation_reads_the_weights_as_they_are(tapes: list[Tape]) -> None:
    """Under autocast, which keeps casts of weights that are trained, and with weights that change in place."""
    lm = LanguageModel(random_lm("gpt2", 0).model, random_lm("gpt2", 0).tokenizer, "tuned", tuning="full").eval()
    prefix = torch.randn(6, 3, 32)
    found = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(decode(lm, prefix, "greedy", max_tokens=6))
            assert found[-1] == decode_eagerly(lm, prefix, "greedy", max_tokens=6)
            assert found[-1] == decode(lm, prefix, "greedy", max_tokens=6)
        with torch.no_grad():
            for weight in lm.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.5)
    assert len(tapes) == 1 and tapes[0].replayed > 20
    assert len({str(captions) for captions in found}) == 4


def test_weights_that_move_are_captured_anew(tapes: list[Tape]) -> None:
    lm = random_lm("gpt2", 0)
    prefix = torch.randn(3, 3, 32)
    for _ in range(2):
        expected = decode_eagerly(lm, prefix, "greedy", max_tokens=6)
        assert [decode(lm, prefix, "greedy", max_tokens=6) for _ in range(3)] == [expected] * 3
        lm.model.load_state_dict(random_lm("gpt2", 1).model.state_dict(), assign=True)
    assert len(tapes) == 2


def test_a_single_batch_and_a_decoder_that_asks_the_host_are_eager(tapes: list[Tape]) -> None:
    lm = LanguageModel(random_lm("gpt2", 0).model, random_lm("gpt2", 0).tokenizer, "tuned", tuning="full").eval()
    prefix = torch.randn(3, 3, 32)
    for method in ("greedy", "beam", "greedy", "contrastive", "contrastive"):
        decode(lm, prefix, method, max_tokens=6)
    for _ in range(3):
        decode(lm, prefix, "greedy", max_tokens=6, min_tokens=2, no_repeat_ngram=2)
        generate(lm, prefix, GenerationLimits(max_tokens=6), lambda logits, rows, step: logits.argmin(-1), 0)
        lm.train()
        decode(lm, prefix, "greedy", max_tokens=6)
        lm.eval()
    lm.cuda_graphs = False
    decode(lm, prefix, "greedy", max_tokens=6)
    decode(lm, prefix, "greedy", max_tokens=6)
    assert not tapes


def test_a_failed_capture_is_told_and_decoding_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __init__(self, device: torch.device) -> None:
            pass

        def capture(self, function: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setitem(captured.RECORDERS, "cpu", Fails)
    lm = random_lm("gpt2", 0)
    prefix = torch.randn(3, 3, 32)
    expected = decode_eagerly(lm, prefix, "beam", max_tokens=6)
    assert decode(lm, prefix, "beam", max_tokens=6) == expected
    with pytest.warns(UserWarning, match="'random' decodes without CUDA graphs: operation not permitted when stream"):
        assert decode(lm, prefix, "beam", max_tokens=6) == expected
    assert not lm.cuda_graphs and decode(lm, prefix, "beam", max_tokens=6) == expected


def test_an_image_of_nan_harms_no_other(tapes: list[Tape]) -> None:
    lm = random_lm("gpt2", 0)
    prefix = torch.randn(4, 3, 32)
    expected = decode_eagerly(lm, prefix, "greedy", max_tokens=6)
    for _ in range(3):
        decode(lm, torch.full_like(prefix, torch.nan), "greedy", max_tokens=6)
    broken = prefix.index_fill(0, torch.tensor(0), torch.nan)
    assert decode(lm, broken, "greedy", max_tokens=6)[1:] == expected[1:]
    assert decode(lm, prefix, "greedy", max_tokens=6) == expected and tapes[0].replayed


@pytest.mark.parametrize("search", ["greedy", "nucleus", "beam", "diverse beam", "forced beam", "clipcap"])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_a_step_on_a_gpu_never_asks_the_host(kind: str, search: str) -> None:
    """A fake GPU knows shapes alone: it fails where a value is asked for, or where a tensor lies on the CPU."""
    limits = GenerationLimits(
        max_tokens=9, min_tokens=2, repetition_penalty=1.2, no_repeat_ngram=2, bad_words_ids=((3,), (4, 5))
    )
    lm, device = random_lm(kind, 0), torch.device("cuda")
    lm._without_token = torch.zeros(40, dtype=torch.bool)
    with FakeTensorMode() as fake, torch.inference_mode():
        for module in lm.modules():
            for name, value in (module._parameters | module._buffers).items():
                if value is not None:
                    delattr(module, name)
                    setattr(module, name, fake.from_tensor(value).to(device))
        prefix = torch.empty(4, 3, 32, device=device)
        start: Search = {
            "greedy": lambda: _Stepwise(4, limits, 0, device),
            "nucleus": lambda: _Nucleus(8, limits, 0, torch.empty(8, 9, device=device), 0.9, 5, 0.7),
            "beam": lambda: _BeamSearch(4, 1, 3, limits, 0, device, 1.0, 0.5),
            "diverse beam": lambda: _BeamSearch(4, 2, 3, limits, 0, device, 1.0, 0.5),
            "forced beam": lambda: _BeamSearch(
                4,
                2,
                3,
                limits,
                0,
                device,
                1.0,
                0.5,
                ForcedWords((((3, 4), (5,)),), 1, 0, torch.ones(40, dtype=torch.bool, device=device)),
            ),
            "clipcap": lambda: _ClipCapSearch(4, (3,), limits, 0, device),
        }[search]()
        start.limits = replace(limits, min_tokens=0) if search in ("greedy", "nucleus") else limits
        program = captured.Program(prefix, start, Tape())
        program._begin(lm, 4)
        program._step(lm, 4, 16)
        program.search.first(4).sort()
        assert program.search.tokens.device.type == "cuda"
