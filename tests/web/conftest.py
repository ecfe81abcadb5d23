"""A captioner of the small world behind a server of its own, on a free port."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from prefixcap.captioner import Captioner
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from prefixcap.web.server import build_app


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    """The small world's CLIP and GPT-2 with a mapper that has learned nothing, but tells pictures apart."""
    torch.manual_seed(0)
    lm, identity = load_language_model("demo"), load_encoder("demo").identity
    return Captioner(lm, identity, {"name": "mlp", "prefix_length": 4}).eval()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = [folder / f"picture {number}.jpg" for number in range(10)]
    for file in files:
        draw(random_scene(generator), generator).save(file)
    return files


@contextmanager
def served(captioner: Captioner, password: str | None = None, max_queue: int = 64) -> Iterator[str]:
    """The address of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(build_app(captioner, password, max_queue), log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def address(captioner: Captioner) -> Iterator[str]:
    with served(captioner) as at:
        yield at


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    """For one test, after which the server must be well."""
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
        assert client.get("/health").json() == {"status": "ok"}
        picture = jpeg(Image.new("RGB", (40, 30)))
        answer = client.post("/api/caption", data={"max_tokens": 3}, files={"images": picture})
        assert answer.status_code == 200


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
