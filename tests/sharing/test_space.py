"""A Space's folder: what is in it, and that it serves the captioner."""

import http.client
import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import SpaceCard
from PIL import Image

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.sharing.space import requirement, write_space
from tests.processes import Python, free_port


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(0)
    identity = load_encoder("demo").identity
    return Captioner(load_language_model("demo"), identity, {"name": "mlp", "prefix_length": 4}).eval()


@pytest.fixture(scope="module")
def space(captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spaces") / "my-space"
    write_space(captioner, folder, "mit")
    return folder


def post_image(port: int, image: bytes) -> tuple[int, dict[str, object]]:
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {
        "Content-Type": "multipart/form-data; boundary=x",
        "Host": "someone-my-space.hf.space",  # what a browser calls it
        "X-Forwarded-For": "203.0.113.9",
    }
    connection.request("POST", "/api/caption", head + image + b"\r\n--x--\r\n", headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_the_folder_runs_and_captions(space: Path, captioner: Captioner, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.linear_gradient("L").convert("RGB").save(image)
    port = free_port()
    environment = {"GRADIO_SERVER_PORT": str(port), "HOME": str(tmp_path)}
    process = Python(space / "app.py", cwd=tmp_path, environment=environment)
    try:
        assert f"is served at http://0.0.0.0:{port}" in process.stdout.readline()
        deadline = time.monotonic() + 60
        while True:
            try:
                status, answer = post_image(port, image.read_bytes())
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert status == 200, answer
        assert captioner.caption([image])[0] in json.dumps(answer)
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        page.request("GET", "/", headers={"Host": "someone-my-space.hf.space"})
        shown = page.getresponse()
        policy = shown.headers["content-security-policy"]
        assert shown.status == 200 and policy.endswith("frame-ancestors 'self' https://huggingface.co")
    finally:
        process.kill()


def test_the_space_says_what_it_needs(space: Path, captioner: Captioner) -> None:
    assert {file.name for file in space.iterdir()} == {"README.md", "app.py", "captioner", "requirements.txt"}
    assert (space / "requirements.txt").read_text() == f"prefixcap[serve]=={prefixcap.__version__}\n"
    card = SpaceCard.load(space / "README.md")  # the hub's own reader
    assert card.data.sdk == "gradio" and card.data.app_file == "app.py" and card.data.license == "mit"
    assert card.data.title == "my-space" and yaml.safe_load((space / "README.md").read_text().split("---")[1])
    again = prefixcap.load(space / "captioner")
    embeddings = torch.randn(2, 128)
    assert again.caption(embeddings, max_tokens=9) == captioner.caption(embeddings, max_tokens=9)
    photo = EncoderIdentity("photo", "0" * 64, "", 128)
    others = Captioner(captioner.language_model, photo, {"name": "mlp", "prefix_length": 4})
    assert requirement(others) == f"prefixcap[serve,photos]=={prefixcap.__version__}"


def test_what_a_space_would_lack_is_told(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    identity = EncoderIdentity(f"transformers:{tmp_path}/clip", "0" * 64, "", 128)
    local = Captioner(captioner.language_model, identity, {"name": "mlp", "prefix_length": 4})
    with pytest.raises(InputError, match=r"^encoder .*/clip' is a file or folder of this machine, .*: upload it to"):
        write_space(local, tmp_path / "space")
    fusion = Captioner(captioner.language_model, captioner.encoder_identity, {"name": "fusion"})
    with pytest.raises(InputError, match=r"retrieves captions from a datastore, which a Space does not have"):
        write_space(fusion, tmp_path / "space")
    assert not (tmp_path / "space").exists()
