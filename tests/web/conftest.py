"""A captioner of the small world behind a server of its own, on a free port."""

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from prefixcap.captioner import Captioner
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from prefixcap.prompts import Datastore, build_provider
from prefixcap.textonly.memory import MemoryBank
from prefixcap.web import jobs
from prefixcap.web.server import Server, build_app
from tests.web.browsing import CHROMIUM, DESKTOP, OPTIONS, Visit


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    """The small world's CLIP and GPT-2 with a mapper that has learned nothing, but tells pictures apart."""
    torch.manual_seed(0)
    lm, identity = load_language_model("demo"), load_encoder("demo").identity
    return Captioner(lm, identity, {"name": "mlp", "prefix_length": 4}).eval()


CAPTIONS = ["a large red circle", "a yellow star at night", "a pink heart", "a blue square", "a green ring", "snow"]


@pytest.fixture(scope="session")
def retrieving(captioner: Captioner) -> Captioner:
    """The same captioner, with retrieved captions as prompts."""
    encoder = captioner.encoder()
    retrieving = Captioner(captioner.language_model, captioner.encoder_identity, captioner.mapper_options).eval()
    retrieving.load_state_dict(captioner.state_dict())
    datastore = Datastore(MemoryBank(encoder.encode_texts(CAPTIONS), CAPTIONS), encoder.identity, "these captions")
    retrieving.use_prompts(build_provider({"name": "retrieved_captions", "k": 3}, encoder, datastore))
    return retrieving


@pytest.fixture(scope="session")
def fusing(captioner: Captioner) -> Captioner:
    """A captioner whose mapper reads three captions of one of two datastores, and that finds entities, too."""
    torch.manual_seed(0)
    encoder = captioner.encoder()
    mapper = {"name": "fusion", "prefix_length": 4, "layers": 1, "heads": 4, "retrieved": 3}
    fusing = Captioner(captioner.language_model, captioner.encoder_identity, mapper).eval()
    entities = {"vocabulary": ["red circle", "yellow star", "moon"], "top_k": 2, "threshold": 0.0}
    fusing.use_prompts(build_provider({"name": "clip_entities", **entities}, encoder))
    datastores = {
        name: Datastore(MemoryBank(encoder.encode_texts(own), own), encoder.identity, name)
        for name, own in (("these", CAPTIONS), ("fewer", CAPTIONS[1:5]))
    }
    fusing.use_datastore(datastores)
    return fusing


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = [folder / f"picture {number}.jpg" for number in range(10)]
    for file in files:
        draw(random_scene(generator), generator).save(file)
    return files


@contextmanager
def served(captioner: Captioner | dict[str, Captioner], *arguments: Any, **options: Any) -> Iterator[str]:
    """The address of a server in a thread, with the arguments of `build_app`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(build_app(captioner, *arguments, **options), log_level="critical")
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


def photograph() -> bytes:
    noise = np.random.default_rng(0).normal(128, 50, (40, 60, 1)).clip(0, 255)  # the same in every process
    return jpeg(Image.fromarray(noise.astype(np.uint8).repeat(3, axis=2)))


def form(*files: bytes, **fields: object) -> bytes:
    """A multipart body with the boundary "x", written out."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n'.encode() for name in fields
    ]
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    return b"".join([*parts, *(head + file + b"\r\n" for file in files), b"--x--\r\n"])


def post(body: bytes, *headers: str, path: str = "/api/caption", host: str = "localhost") -> bytes:
    """A request with a form, written out."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: multipart/form-data; boundary=x", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def connect(address: str, source: str = "127.0.0.1") -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0))


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer on a connection. Raises ConnectionError where there is none."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A model that says when it has begun, and goes on when it is told to. To be asked for once a server is there."""
    begun, go_on = threading.Event(), threading.Event()

    def run(job: jobs.Captions, captioner: Captioner, images: list[jobs.Picture]) -> list[jobs.Captioned]:
        begun.set()
        assert go_on.wait(60)
        return [jobs.Captioned([jobs.Scored("a caption", 0.5)]) for _ in images]

    monkeypatch.setattr(jobs.Captions, "run", run)
    yield begun, go_on
    go_on.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, DESKTOP)
    yield visit
    visit.page.close()
