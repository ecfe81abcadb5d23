"""The captioner: its loss against a plain loop, what it saves and loads, what it refuses."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.packing import pack
from tests.conftest import small_captioner


def checkpoint(captioner: Captioner, path: Path) -> Path:
    """What training writes of a captioner."""
    state = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
    torch.save({"prefixcap": captioner.describe(), "state_dict": state}, path)
    return path


def demo_captioner(tuning: str = "frozen") -> Captioner:
    """A captioner over the small world's language model, so that it can be loaded by name."""
    small = small_captioner()
    lm = load_language_model("demo", tuning)  # type: ignore[arg-type]
    return Captioner(
        lm, small.encoder_identity, {"name": "mlp", "prefix_length": 4}, trained_on={"data": "test"}
    ).eval()


@pytest.mark.parametrize("decode", ["greedy", "beam", "nucleus"])
def test_embeddings_that_are_no_numbers_are_refused(decode: str) -> None:
    captioner = small_captioner()
    embeddings = torch.randn(5, 16)
    embeddings[1, 3], embeddings[4, 0] = torch.nan, -torch.inf
    for given in (embeddings, embeddings.numpy(), embeddings.half()):
        with pytest.raises(InputError, match=r"^embeddings: rows 1, 4 NaN or infinite: embed again$"):
            captioner.caption(given, decode, batch_size=2, max_tokens=3)
    assert len(captioner.caption(embeddings[2:4], decode, max_tokens=3)) == 2


def test_normalized_embeddings_make_scale_irrelevant() -> None:
    small = small_captioner()
    captioner = Captioner(small.language_model, small.encoder_identity, small.mapper_options, normalize_embeddings=True)
    embeddings = torch.randn(2, 16)
    torch.testing.assert_close(captioner.prefix(embeddings), captioner.prefix(7 * embeddings))
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    torch.testing.assert_close(captioner.prefix(embeddings), captioner.mapper(unit))


def test_a_frozen_language_model_takes_no_gradient_and_stays_in_eval_mode() -> None:
    captioner = small_captioner("frozen").train()
    captioner.loss(pack(torch.randn(2, 16), [[1, 2], [3, 4]], [0, 1], 4)).backward()
    assert not captioner.language_model.model.training
    assert captioner.mapper.training
    assert all(weight.grad is None for weight in captioner.language_model.parameters())
    assert all(weight.grad is not None for weight in captioner.mapper.parameters())
    assert not any(name.startswith("language_model") for name in captioner.checkpoint_state_dict())


def test_a_tuned_language_model_is_trained_and_saved() -> None:
    captioner = small_captioner("full").train()
    captioner.loss(pack(torch.randn(2, 16), [[1, 2], [3, 4]], [0, 1], 4)).backward()
    assert captioner.language_model.model.training
    assert all(weight.grad is not None for weight in captioner.language_model.parameters())
    assert captioner.checkpoint_state_dict().keys() == captioner.state_dict().keys()


def test_every_caption_ends_in_the_end_token() -> None:
    lm = load_language_model("demo")
    for row, caption in zip(lm.tokenize(["A red star.", ""]), ["A red star.", ""], strict=True):
        assert row[-1] == lm.tokenizer.eos_token_id
        assert lm.detokenize(row) == caption


@pytest.mark.parametrize("tuning", ["frozen", "full"])
@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_load_gives_the_same_captions(tuning: str, form: str, tmp_path: Path) -> None:
    captioner = demo_captioner(tuning)
    with torch.no_grad():  # not the weights that the name stands for
        if tuning == "full":
            for weight in captioner.language_model.parameters():
                weight.add_(torch.randn_like(weight) * 0.02)
    embeddings = torch.randn(5, 16)
    before = captioner.caption(embeddings, "beam", max_tokens=20)
    path = tmp_path / "model.ckpt"
    if form == "checkpoint":
        checkpoint(captioner, path)
    else:
        path = tmp_path / "exported"
        captioner.save_pretrained(path)
        assert {"config.json", "mapper.safetensors"} <= {file.name for file in path.iterdir()}
        assert not list(path.rglob("*.bin")) and not list(path.rglob("*.pt"))
        if tuning == "full":
            AutoModelForCausalLM.from_pretrained(path / "language_model")  # transformers opens it by itself
    loaded = prefixcap.load(path)
    assert not loaded.training
    assert loaded.caption(embeddings, "beam", max_tokens=20) == before
    assert loaded.trained_on == {"data": "test"}
    assert loaded.language_model.tuning == tuning and loaded.language_model.name == "demo"


def test_embeddings_may_be_arrays_in_half_precision() -> None:
    captioner = demo_captioner()
    embeddings = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float16)
    expected = captioner.caption(torch.from_numpy(embeddings), "greedy", max_tokens=8)
    assert captioner.caption(embeddings, "greedy", batch_size=2, max_tokens=8) == expected


def test_caption_restores_the_mode() -> None:
    captioner = small_captioner().train()
    captioner.caption(torch.randn(1, 16), "greedy", max_tokens=3)
    assert captioner.mapper.training


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "trap.ckpt"
    torch.save({"prefixcap": {}, "state_dict": Trap()}, path)
    with pytest.raises(InputError, match=r"trap\.ckpt is not a checkpoint of prefixcap, or is damaged"):
        prefixcap.load(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"trap\.ckpt is not a checkpoint"):
        prefixcap.load(path)
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        prefixcap.load(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(InputError, match="is not a checkpoint of prefixcap, or is damaged"):
        prefixcap.load(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint of prefixcap: give one"):
        prefixcap.load(tmp_path / "other.ckpt")
    whole = checkpoint(demo_captioner(), tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"half\.ckpt is not a checkpoint of prefixcap, or is damaged"):
        prefixcap.load(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match="holds no captioner"):
        prefixcap.load(tmp_path)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = checkpoint(demo_captioner(), tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    name = "captioner.mapper.model.0.bias"

    def saved(state: dict[str, torch.Tensor]) -> Path:
        torch.save({**content, "state_dict": state}, path)
        return path

    state = content["state_dict"]
    with pytest.raises(InputError, match=r"lacks weight 'mapper\.model\.0\.bias'"):
        prefixcap.load(saved({key: value for key, value in state.items() if key != name}))
    with pytest.raises(InputError, match="has the unknown weight 'extra'"):
        prefixcap.load(saved({**state, "captioner.extra": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"weight 'mapper\.model\.0\.bias' is \(3,\), not"):
        prefixcap.load(saved({**state, name: torch.zeros(3)}))
    torch.save({**content, "prefixcap": {**content["prefixcap"], "format_version": 99}}, path)
    with pytest.raises(InputError, match="format 99"):
        prefixcap.load(path)


def test_bad_images_and_embeddings_are_told(tmp_path: Path) -> None:
    captioner = demo_captioner()
    with pytest.raises(InputError, match=r"shape \(2, 5\).*reads \(batch, 16\): embed the images with clip:nowhere"):
        captioner.caption(torch.randn(2, 5))
    with pytest.raises(InputError, match="images must be a list: give"):
        captioner.caption("a.jpg")
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        captioner.caption([tmp_path / "absent.jpg"])  # the encoder comes first, and cannot be found
    with pytest.raises(InputError, match="unknown tuning 'half': choose one of frozen, lora, full"):
        load_language_model("demo", "half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot load language model"):
        load_language_model(str(tmp_path))


def test_another_encoder_under_the_same_name_is_refused(tmp_path: Path) -> None:
    lm = load_language_model("demo")
    identity = prefixcap.encoders.EncoderIdentity("demo", "f" * 64, "", 128)
    captioner = Captioner(lm, identity, {"name": "mlp", "prefix_length": 2})
    with pytest.raises(InputError, match="encoder 'demo' has other weights"):
        captioner.encoder()


def test_images_by_path_and_as_pictures(tmp_path: Path) -> None:
    from PIL import Image

    from prefixcap.encoders import load_encoder

    encoder = load_encoder("demo")
    captioner = Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 2})
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    picture.save(tmp_path / "red.png")
    by_path = captioner.caption([tmp_path / "red.png", str(tmp_path / "red.png")], "greedy", max_tokens=10)
    assert by_path == captioner.caption([picture, picture], "greedy", max_tokens=10)
    embeddings = encoder.encode_images(encoder.preprocess(picture)[None])
    assert captioner.caption(embeddings, "greedy", max_tokens=10) == by_path[:1]
    (tmp_path / "text.jpg").write_text("no picture")
    for name, reason in (("text.jpg", "not an image"), ("absent.jpg", "missing file")):
        with pytest.raises(InputError, match=rf"{name}: {reason}"):
            captioner.caption([tmp_path / name])


def test_a_prompt_begins_every_caption() -> None:
    captioner = demo_captioner()
    embeddings = torch.randn(3, 16)
    prompted = captioner.caption(embeddings, "greedy", prompt="a photo of", max_tokens=6)
    assert all(caption.startswith("a photo of") for caption in prompted)
    lm = captioner.language_model
    words = lm.tokenizer("a photo of", add_special_tokens=False)["input_ids"]
    read = torch.cat((captioner.prefix(embeddings), lm.embed(torch.tensor([words] * 3))), dim=1)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": lm.eos_token_id,
        "pad_token_id": lm.eos_token_id,
    }
    generated = lm.model.generate(inputs_embeds=read, attention_mask=torch.ones(read.shape[:2]), **options)
    assert prompted == [lm.detokenize(words + row) for row in generated.tolist()]


def test_candidates_are_ranked_by_similarity_to_the_image() -> None:
    from prefixcap.encoders import load_encoder

    encoder = load_encoder("demo")
    captioner = Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 2})
    embeddings = encoder.encode_texts(["a small red circle at the top", "a large blue square"])
    drawn: dict[str, Any] = {"decode": "nucleus", "max_tokens": 12, "seed": 3}
    candidates = captioner.candidates(embeddings, 6, **drawn)
    ranked = captioner.candidates(embeddings, 6, by_similarity=True, **drawn)
    for embedding, before, after in zip(embeddings, candidates, ranked, strict=True):
        similarity = [float(F.cosine_similarity(embedding, encoder.encode_texts([text])[0], dim=0)) for text in after]
        assert similarity == pytest.approx(sorted(similarity, reverse=True), abs=1e-5)
        assert sorted(before) == sorted(after) and len(set(after)) > 1
    assert captioner.caption(embeddings, rerank=6, **drawn) == [captions[0] for captions in ranked]
    assert captioner.caption(embeddings, **drawn) != captioner.caption(embeddings, rerank=6, **drawn)
    with pytest.raises(InputError, match="'beam' does not draw: leave it out"):
        captioner.caption(embeddings, seed=3)


def test_captions_in_half_precision() -> None:
    captioner = demo_captioner()
    embeddings = torch.randn(4, 16)
    in_float = captioner.caption(embeddings, "greedy", max_tokens=1)
    in_half = captioner.to(torch.bfloat16).caption(embeddings, "greedy", max_tokens=1)
    assert sum(a == b for a, b in zip(in_float, in_half, strict=True)) >= 3


def test_importing_the_package_loads_no_model_code() -> None:
    code = "import sys, prefixcap; print({'torch', 'transformers', 'clip'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.parametrize(("tuning", "form"), [("frozen", "checkpoint"), ("full", "checkpoint"), ("full", "folder")])
def test_precision_of_the_language_model_is_chosen_when_loading(tuning: str, form: str, tmp_path: Path) -> None:
    made = demo_captioner(tuning)
    source = checkpoint(made, tmp_path / "best.ckpt")
    if form == "folder":
        made.save_pretrained(source := tmp_path / "folder")
    halved = prefixcap.load(source, dtype="bfloat16")
    assert halved.language_model.dtype == "bfloat16" and next(halved.mapper.parameters()).dtype == torch.float32
    expected = {name: weight.bfloat16() for name, weight in made.language_model.model.state_dict().items()}
    torch.testing.assert_close(halved.language_model.model.state_dict(), expected, rtol=0, atol=0)
    embeddings = torch.randn(2, made.encoder_identity.dim)
    assert all(halved.caption(embeddings, max_tokens=5))
    with pytest.raises(InputError, match="unknown dtype 'float8'"):
        prefixcap.load(source, dtype="float8")  # type: ignore[arg-type]

    if (tuning, form) == ("full", "checkpoint"):
        with pytest.raises(InputError, match="are quantized from a folder only"):
            prefixcap.load(source, quantization="8bit")
        return
    quantized = prefixcap.load(source, quantization="8bit")
    assert quantized.language_model.quantization == "8bit"
    assert quantized.caption(embeddings, "greedy", max_tokens=3) == made.caption(embeddings, "greedy", max_tokens=3)
