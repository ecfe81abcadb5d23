"""Exports against the captioner that they are made of: embeddings, prefixes, logits with a cache, captions."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from prefixcap.captioner import Captioner
from prefixcap.encoders import BACKENDS, load_encoder
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.sharing.export import export_onnx, export_program
from tests.conftest import ROOT, small_captioner
from tests.decoding import stateful_lm
from tests.language_models import save_language_model
from tests.processes import python

Model = Callable[..., list[NDArray[Any]]]


def captioner_of(
    language_model: LanguageModel, mapper: str = "mlp", normalize: bool = False, start_token: bool = False
) -> Captioner:
    torch.manual_seed(0)
    options = {"name": mapper, "prefix_length": 5} | ({"layers": 1} if mapper == "transformer" else {})
    identity = load_encoder("demo").identity
    return Captioner(language_model, identity, options, normalize, start_token=start_token).eval()


def adapted() -> LanguageModel:
    """The small world's language model, with adapters as if they had been trained."""
    language_model = load_language_model("demo", "lora")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in language_model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
    return language_model


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return captioner_of(adapted(), "transformer", normalize=True, start_token=True)


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def exported(request: pytest.FixtureRequest, captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "of" / request.param
    (export_onnx if request.param == "onnx" else export_program)(captioner, folder)
    return folder


def open_model(folder: Path, name: str) -> Model:
    if (folder / f"{name}.onnx").exists():
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        names = [given.name for given in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))  # type: ignore[no-any-return]
    program = torch.export.load(folder / f"{name}.pt2").module(check_guards=False)

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        outputs = program(*map(torch.from_numpy, arrays))
        return [output.detach().numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs])]

    return run


def pictures(folder: Path) -> list[Path]:
    """One picture of 117 x 112, and turned by its EXIF data, grey, and with transparency."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((117, 112))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    for mode in ("RGB", "L", "RGBA"):
        image.convert(mode).save(folder / f"{mode}.png")
    return [folder / name for name in ("turned.jpg", "RGB.png", "L.png", "RGBA.png")]


def assert_close(found: NDArray[Any], expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4, rtol=1e-4)


def test_embeddings_and_prefixes(exported: Path, captioner: Captioner, tmp_path: Path) -> None:
    encoder, mapper = (open_model(exported, name) for name in ("image_encoder", "mapper"))
    images = [Image.open(path) for path in pictures(tmp_path)]
    pixels = np.stack([captioner.encoder().preprocess(image).numpy() for image in images])
    for batch in (1, 2, 4):
        (embeddings,) = encoder(pixels[:batch])
        assert_close(embeddings, captioner.embed(images[:batch]))
        (prefix,) = mapper(embeddings)
        assert_close(prefix, captioner.prefix(torch.from_numpy(embeddings)))


def check_steps(step: Model, language_model: LanguageModel, empty_past: list[int]) -> None:
    """Logits of texts that are read in several pieces, against those of the whole text read at once."""
    generator = torch.Generator().manual_seed(2)
    words = len(language_model.tokenizer)
    for batch, vectors, prompt, more in ((1, 5, 0, 3), (3, 5, 2, 2), (2, 1, 0, 1), (4, 0, 1, 4)):
        prefix = torch.randn(batch, vectors, language_model.dim, generator=generator)
        tokens = torch.randint(words, (batch, prompt + more), generator=generator)
        with torch.no_grad():
            whole = language_model(torch.cat((prefix, language_model.embed(tokens)), dim=1), more + 1)
        layers, two, _, heads, _, width = empty_past
        past = np.zeros((layers, two, batch, heads, 0, width), np.float32)
        read = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
        for number, piece in enumerate(read):
            logits, past = step(prefix.numpy()[:, : vectors if number == 0 else 0], piece.numpy(), past)
            assert_close(logits, whole[:, number])
        assert past.shape[4] == vectors + prompt + more


def test_logits_with_a_cache(exported: Path, captioner: Captioner) -> None:
    about = json.loads((exported / "export.json").read_text())
    check_steps(open_model(exported, "language_model"), captioner.language_model, about["empty_past"])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("opt", "float32"), ("llama", "bfloat16")])
def test_other_language_models(kind: str, dtype: Any, tmp_path: Path) -> None:
    language_model = load_language_model(save_language_model(kind, tmp_path / kind), dtype=dtype)
    export_program(captioner_of(language_model), tmp_path / "exported")
    about = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert next(language_model.parameters()).dtype == getattr(torch, dtype)
    check_steps(open_model(tmp_path / "exported", "language_model"), language_model.float(), about["empty_past"])


def test_captions_without_this_package(exported: Path, captioner: Captioner, tmp_path: Path) -> None:
    images = [str(path) for path in pictures(tmp_path)[:2]]
    without = ["prefixcap", "transformers", "clip"] + (["torch"] if exported.name == "onnx" else [])
    code = (
        "import runpy, sys\n"
        f"for name in [*sys.modules, *{without}]:\n"
        f"    if name.partition('.')[0] in {without}:\n"
        "        sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = python("-c", code, exported / "caption.py", *images, cwd=tmp_path)
    assert not done.returncode, done.stderr
    expected = captioner.caption(images, "greedy")
    assert done.stdout.splitlines() == [f"{image}\t{text}" for image, text in zip(images, expected, strict=True)]
    assert len(set(expected)) > 1


def test_an_export_tells_how_it_is_used_and_nothing_of_this_machine(exported: Path) -> None:
    about = json.loads((exported / "export.json").read_text())
    readme = (exported / "README.md").read_text()
    for model, of in about["models"].items():
        assert all(f"`{name}`: {what}" in readme for name, what in (of["inputs"] | of["outputs"]).items()), model
    assert about["models"]["language_model"]["inputs"]["past"] == "float32 (4, 2, batch, 4, past, 32)"
    if exported.name == "onnx":
        for model, of in about["models"].items():
            session = onnxruntime.InferenceSession(exported / f"{model}.onnx")
            for given in session.get_inputs():
                assert of["inputs"][given.name].endswith(f"({', '.join(map(str, given.shape))})")
            assert [output.name for output in session.get_outputs()] == list(of["outputs"])
    home = str(ROOT).encode()
    assert not [file for file in exported.iterdir() if home in file.read_bytes()]


def test_what_cannot_be_exported_is_refused(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "exported"
    query = Captioner(load_language_model("demo"), load_encoder("demo").identity, {"name": "query"})
    with pytest.raises(InputError, match=r"reads images/patches, and only those .* share it with save_pretrained"):
        export_onnx(query, folder)
    fusion = Captioner(load_language_model("demo"), load_encoder("demo").identity, {"name": "fusion"})
    with pytest.raises(InputError, match=r"reads captions that it retrieves, .* share it with save_pretrained"):
        export_onnx(fusion, folder)
    quantized = captioner_of(load_language_model("demo", quantization="8bit"))
    with pytest.raises(InputError, match=r"language model 'demo' is quantized \(8bit\), which cannot be exported"):
        export_program(quantized, folder)
    with pytest.raises(InputError, match=r"encoder 'clip:nowhere\.pt'"):
        export_program(small_captioner(), folder)
    with pytest.raises(InputError, match=r"the captioner is on meta: load it on the CPU"):
        export_program(captioner_of(load_language_model("demo")).to("meta"), folder)
    with pytest.raises(InputError, match=r"language model 'mamba' has no key/value cache in every layer"):
        export_program(captioner_of(stateful_lm("mamba", 470)), folder)
    monkeypatch.delitem(BACKENDS, "colours", raising=False)  # which the example adds
    runpy.run_path(str(ROOT / "docs" / "examples" / "add_encoder.py"))
    colours = Captioner(load_language_model("demo"), load_encoder("colours").identity, {"name": "mlp"})
    with pytest.raises(InputError, match=r"encoder 'colours' cannot be exported: it has no image_tower and geometry"):
        export_onnx(colours, folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else than an export: name a new folder"):
        export_program(captioner, folder)
    with pytest.raises(InputError, match=r"a file stands where its folder belongs"):
        export_program(captioner, folder / "thesis.tex" / "exported")
    assert [file.name for file in tmp_path.rglob("*")] == ["exported", "thesis.tex"]


def test_a_language_model_that_cannot_be_traced_leaves_the_earlier_export(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=470, hidden_size=32, n_layer=1, n_head=2)
    tokenizer = load_language_model("demo").tokenizer
    bloom = captioner_of(LanguageModel(BloomForCausalLM(config), tokenizer, "bloom"))
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "export.json").write_text("earlier")
    with pytest.raises(
        InputError, match=r"language_model \(BloomForCausalLM\) cannot be traced by torch.export: "
    ) as told:
        export_program(bloom, tmp_path / "exported")
    assert "\n" not in str(told.value)
    assert (tmp_path / "exported" / "export.json").read_text() == "earlier"


def test_onnx_is_asked_for_by_name(captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxscript: pip install 'prefixcap\[onnx\]'"):
        export_onnx(captioner, tmp_path / "exported")
