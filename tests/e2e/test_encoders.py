"""Training, evaluation and captioning with an encoder that reads no texts."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from prefixcap.captioner import load
from prefixcap.errors import InputError
from tests.commands.conftest import Command
from tests.commands.conftest import command as command
from tests.commands.conftest import mistaken as mistaken
from tests.e2e.conftest import Script
from tests.encoders.conftest import timm_folder as timm_folder
from tests.web.conftest import served

SHORT = (
    "trainer.max_steps=2", "trainer.val_check_interval=2", "val_max_tokens=8", "batch_size=8", "data.keep_tokens=false",
)  # fmt: skip
QUICK = ("decode=greedy", "decode.max_tokens=6")


@pytest.mark.parametrize("model", ["mlp", "projector"])
def test_an_encoder_without_a_text_side(
    model: str,
    script: Script,
    folder: Path,
    timm_folder: Path,
    command: Command,
    mistaken: Callable[..., str],
) -> None:
    script("train", *SHORT, f"model={model}", f"encoder.name=timm:{timm_folder}", f"run_dir=runs/{model}")
    ckpt = folder / "runs" / model / "checkpoints/best.ckpt"
    captioner = load(ckpt)
    assert captioner.encoder_identity.dim == 48
    assert captioner.prefix_length == (16 if model == "projector" else 10)  # of 4 x 4 patches
    assert "out-of-domain" in script("eval", f"ckpt={ckpt}", *QUICK, "metrics=[CIDEr]")
    picture = next((folder / "data/demo/images").iterdir())
    options = ("caption", picture, "--ckpt", ckpt, "--decode", "greedy", "--set", "max_tokens=6", "--format", "json")
    (entry,) = json.loads(command(*options).out)
    assert entry["captions"] == captioner.caption([str(picture)], "greedy", max_tokens=6)
    # What needs a text side says so, in one line.
    with pytest.raises(InputError, match="reads no texts"):
        captioner.caption([str(picture)], "beam", max_tokens=6, rerank=2)
    assert "reads no texts" in mistaken("eval", f"ckpt={ckpt}", *QUICK, "metrics=[CIDEr,CLIPScore]")
    with served(captioner) as address, httpx.Client(base_url=address, timeout=60) as client:
        files = {"images": picture.read_bytes()}
        fields = {"max_tokens": 6, "decode": "greedy"}
        answer = client.post("/api/caption", data=fields, files=files)
        assert answer.json()["images"][0]["captions"][0]["text"] == entry["captions"][0]
        answer = client.post("/api/caption", data={"count": 2, "by_similarity": True}, files=files)
        assert answer.status_code == 422 and "reads no texts" in answer.text
    name = f"encoder.name=timm:{timm_folder}"
    assert "reads no texts" in mistaken("embed", "data=demo", name, "features=[image,caption]", "data.store=stores/new")
