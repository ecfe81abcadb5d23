"""The HTTP API against the captioner itself, over real connections."""

import json
import random
import re
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.decoding import DECODERS, GenerationLimits, decode
from prefixcap.interpretation import interpret
from prefixcap.language import LanguageModel
from prefixcap.utils.images import open_image
from prefixcap.web import jobs
from prefixcap.web.gate import MOST_BYTES
from prefixcap.zeroshot.arithmetic import embed_expressions
from tests.web.conftest import served

Fields = dict[str, Any]


def files(pictures: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (picture.name, picture.read_bytes())) for picture in pictures]


def texts(answer: httpx.Response) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    return [[caption["text"] for caption in image["captions"]] for image in answer.json()["images"]]


def candidates(captioner: Captioner, pictures: list[Path], fields: Fields) -> list[list[str]]:
    """What the captioner gives for pictures, each alone."""
    options = {"count": 1, **fields}
    return [captioner.candidates([picture], **options)[0] for picture in pictures]


SETTINGS: list[Fields] = [
    {"max_tokens": 10, **fields}
    for fields in (
        {"decode": "greedy"},
        {"decode": "beam", "count": 3, "beams": 4},
        {"decode": "beam", "count": 3, "by_similarity": True, "prompt": "In the snow"},
        {"decode": "nucleus", "count": 2, "seed": 3, "top_p": 0.8, "temperature": 1.5},
        {"decode": "contrastive", "top_k": 3, "penalty": 0.4},
        {"decode": "clipcap", "count": 2, "beams": 3},
        {"decode": "beam", "count": 2, "beams": 4, "groups": 2, "diversity": 2.0, "no_repeat_ngram": 2},
        {"decode": "clipcap_greedy", "prompt": "A large"},
    )
]


@pytest.mark.parametrize("fields", [{}, *SETTINGS])
def test_captions_are_those_of_the_captioner(
    client: httpx.Client, captioner: Captioner, pictures: list[Path], fields: Fields
) -> None:
    answer = client.post("/api/caption", data=fields, files=files(pictures[:3]))
    assert texts(answer) == candidates(captioner, pictures[:3], fields)
    assert [image["name"] for image in answer.json()["images"]] == [picture.name for picture in pictures[:3]]


def test_mixed_requests_at_once_are_answered_as_one_after_another(
    client: httpx.Client, captioner: Captioner, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    run = jobs.Captions.run
    monkeypatch.setattr(
        jobs.Captions, "run", lambda job, of, images: (batches.append(len(images)), run(job, of, images))[1]
    )
    draw = random.Random(0)
    requests = [(draw.choice(SETTINGS[:4]), draw.choice(pictures)) for _ in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda of: client.post("/api/caption", data=of[0], files=files([of[1]])), requests))
    for (fields, picture), answer in zip(requests, answers, strict=True):
        assert texts(answer) == candidates(captioner, [picture], fields)
    assert sum(batches) == 32 and len(batches) < 24  # else nothing was batched


def test_similarities_are_cosines_of_the_encoder(
    client: httpx.Client, captioner: Captioner, pictures: list[Path]
) -> None:
    answer = client.post("/api/caption", data={"count": 4, "by_similarity": True}, files=files(pictures[:2])).json()
    for picture, image in zip(pictures[:2], answer["images"], strict=True):
        found = [caption["similarity"] for caption in image["captions"]]
        for caption, similarity in zip(image["captions"], found, strict=True):
            text = captioner.encoder().encode_texts([caption["text"]])
            assert similarity == pytest.approx(float(F.cosine_similarity(text, captioner.embed([picture]))), abs=1e-5)
        assert found == sorted(found, reverse=True)


def test_interpretations_are_those_of_the_library(
    client: httpx.Client, captioner: Captioner, pictures: list[Path]
) -> None:
    answer = client.post("/api/interpret", data={"count": 2}, files=files(pictures[:2])).json()
    for image, vectors in zip(answer["images"], interpret(captioner, pictures[:2], 2), strict=True):
        assert [[token["text"] for token in vector] for vector in image["vectors"]] == [
            [token for token, _ in vector] for vector in vectors
        ]
        similarities = torch.tensor([[token["similarity"] for token in vector] for vector in image["vectors"]])
        assert torch.allclose(
            similarities, torch.tensor([[value for _, value in vector] for vector in vectors]), atol=1e-5
        )


def test_arithmetic_is_that_of_the_library(client: httpx.Client, captioner: Captioner, pictures: list[Path]) -> None:
    fields = {"image_weights": [1, -0.5], "texts": ["a blue square", "snow"], "text_weights": [2, -1], "count": 3}
    answer = client.post("/api/arithmetic", data=fields, files=files(pictures[:2]))
    expression = f"img:'{pictures[0]}' - 0.5*img:'{pictures[1]}' + 2*txt:'a blue square' - txt:snow"
    total = embed_expressions([expression], captioner.encoder())
    assert [caption["text"] for caption in answer.json()["captions"]] == captioner.candidates(total, 3)[0]
    plain = client.post("/api/arithmetic", data={"texts": ["a star", "snow"]}).json()["captions"]
    total = embed_expressions(["txt:'a star' + txt:snow"], captioner.encoder())
    assert [caption["text"] for caption in plain] == captioner.candidates(total, 1)[0]


def test_info_and_schema_say_what_is_served(client: httpx.Client, captioner: Captioner) -> None:
    info = client.get("/api/info").json()
    assert (info["encoder"], info["prefix_length"]) == ("demo", 4)
    assert list(info["decoders"]) == list(DECODERS)
    limits = ["max_tokens", "min_tokens", "repetition_penalty", "no_repeat_ngram"]
    assert "beams" in info["decoders"]["beam"] and info["decoders"]["greedy"] == limits
    schema = client.get("/openapi.json").json()
    paths = {"caption", "caption/stream", "interpret", "arithmetic", "info"}
    assert {"/health", *(f"/v1/{path}" for path in paths)} == set(schema["paths"])
    assert json.dumps(schema).count('"multipart/form-data"') == 4
    assert "openapi.json" in client.get("/docs").text


# ---- busy, gone, slow --------------------------------------------------------------------------------


def half_a_request(address: str, picture: Path) -> tuple[socket.socket, bytes]:
    """A connection on which half of a request was sent, and the other half."""
    content = httpx.Request("POST", f"{address}/api/caption", files=files([picture]))
    body = content.read()
    head = f"POST /api/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content.headers['content-type']}\r\n"
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:100])
    return connection, body[100:]


def test_who_comes_when_all_places_are_taken_is_told_so(
    captioner: Captioner, pictures: list[Path], request: pytest.FixtureRequest
) -> None:
    with (
        served(captioner, max_queue=1) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        begun, go_on = request.getfixturevalue("held")
        arriving = [half_a_request(address, pictures[0]) for _ in range(4)]  # which take no place
        taken = pool.submit(client.post, "/api/caption", files=files(pictures[:1]))
        assert begun.wait(30)
        answer = client.post("/api/caption", files=files(pictures[:1]))
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"].startswith("busy: others")
        assert client.get("/health").status_code == client.get("/").status_code == 200
        connection, rest = arriving[0]
        connection.sendall(rest)
        assert connection.recv(1000).startswith(b"HTTP/1.1 503")
        go_on.set()
        assert taken.result().status_code == 200
        connection, rest = arriving[1]
        connection.sendall(rest)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        for connection, _ in arriving:
            connection.close()
        assert client.post("/api/caption", files=files(pictures[:1])).status_code == 200


def test_who_goes_away_is_not_captioned(
    client: httpx.Client, address: str, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, seen = threading.Event(), threading.Event(), list[int]()

    def run(job: jobs.Captions, captioner: Captioner, images: list[jobs.Picture]) -> list[jobs.Captioned]:
        seen.append(len(images))
        begun.set()
        go_on.wait(30)
        return [jobs.Captioned([jobs.Scored("a caption", 0.5)]) for _ in images]

    monkeypatch.setattr(jobs.Captions, "run", run)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/api/caption", files=files(pictures[:1]))
        assert begun.wait(30)
        connection, rest = half_a_request(address, pictures[1])
        connection.sendall(rest)
        time.sleep(0.3)  # so that it waits in the queue; were it not there yet, it would not come there
        connection.close()
        time.sleep(0.3)
        last = pool.submit(client.post, "/api/caption", files=files(pictures[2:3]))
        time.sleep(0.3)
        go_on.set()
        assert first.result().status_code == last.result().status_code == 200
    assert seen == [1, 1]
    monkeypatch.undo()


def test_a_request_that_does_not_arrive_gives_its_place_back(
    client: httpx.Client, address: str, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixcap.web.gate.SLOWEST", 0.2)
    connection, _ = half_a_request(address, pictures[0])
    assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    connection.close()
    monkeypatch.undo()


# ---- password, disk ----------------------------------------------------------------------------------


def test_a_password_is_asked_for_everywhere_but_for_health(captioner: Captioner, pictures: list[Path]) -> None:
    with served(captioner, password="pass:wörd") as address, httpx.Client(base_url=address, timeout=60) as client:
        for path in (
            "/",
            "/docs",
            "/openapi.json",
            "/api/info",
            "/page.js",
            "/theme.css",
            "/nothing",
            "/examples/0.jpg",
        ):
            for auth in (None, ("", ""), ("me", "word"), ("pass", "wörd"), ("me", "pass:wörd ")):
                answer = client.get(path, auth=auth)
                assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic "), path
                assert list(answer.json()) == ["error"]
        assert client.post("/api/caption", files=files(pictures[:1])).status_code == 401
        assert client.get("/", headers={"authorization": "Basic *"}).status_code == 401
        assert client.get("/", headers={"authorization": "Bearer pass:wörd".encode()}).status_code == 401
        assert client.get("/health").status_code == 200
        client.auth = ("anyone", "pass:wörd")
        assert client.get("/").status_code == client.get("/api/info").status_code == 200
        assert client.post("/api/caption", files=files(pictures[:1])).status_code == 200


def test_no_file_is_kept(
    captioner: Captioner,
    pictures: list[Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    large = tmp_path_factory.mktemp("large") / "large.bmp"
    open_image(pictures[0]).resize((3000, 2000)).save(large)  # 18 MB, which are not read into memory
    with served(captioner) as address, httpx.Client(base_url=address, timeout=60) as client:
        before = set(tmp_path.rglob("*"))
        for path in ("/api/caption", "/api/interpret", "/api/arithmetic"):
            assert client.post(path, files=files([large])).status_code == 200
        assert client.post("/api/caption", files={"images": b"x" * (2 << 20)}).status_code == 400
        assert client.post("/gradio_api/upload", files={"files": b"x" * (2 << 20)}).status_code == 404
        assert set(tmp_path.rglob("*")) == before


def test_a_body_without_a_length_is_counted(client: httpx.Client) -> None:
    def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
        for _ in range(MOST_BYTES // (1 << 20) + 1):
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/caption", content=endless(), headers=headers)
    assert answer.status_code == 413 and "32 MB" in answer.json()["error"]


def test_a_decoder_of_ones_own_is_in_page_and_api(
    captioner: Captioner, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_beam(
        language_model: LanguageModel,
        prefix: Tensor,
        limits: GenerationLimits,
        num_captions: int = 1,
        width: Annotated[int, Interval(ge=1, le=7)] = 3,
        backwards: bool = False,
    ) -> list[list[list[int]]]:
        """The captions of beam search, the worst first.

        Args:
            width: beams that <b>no</b> other decoder has.
            backwards: the last word first.
        """
        found = decode(language_model, prefix, "beam", width, beams=width, max_tokens=limits.max_tokens)
        step = -1 if backwards else 1
        return [[tokens[::step] for tokens in captions[::-1][:num_captions]] for captions in found]

    monkeypatch.setitem(DECODERS, "worst", reversed_beam)
    with served(captioner) as address, httpx.Client(base_url=address, timeout=60) as client:
        settings = {"decode": "worst", "count": 2, "width": 4, "backwards": True, "max_tokens": 6}
        answer = client.post("/api/caption", data=settings, files=files(pictures[:1]))
        assert texts(answer) == candidates(captioner, pictures[:1], settings)
        assert texts(answer) != candidates(captioner, pictures[:1], settings | {"backwards": False})
        for wrong, reason in (({"width": 8}, "width: "), ({"beams": 3}, "'worst' takes no beams")):
            answer = client.post("/api/caption", data={"decode": "worst", **wrong}, files=files(pictures[:1]))
            assert answer.status_code == 422 and reason in answer.json()["error"]
        assert client.get("/api/info").json()["decoders"]["worst"][:3] == ["count", "width", "backwards"]
        fields = client.get("/openapi.json").json()["components"]["schemas"]["CaptionRequest"]["properties"]
        assert "worst" in fields["decode"]["enum"]
        assert fields["width"]["description"] == "worst: beams that <b>no</b> other decoder has"
        assert fields["width"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 7}
        page = client.get("/").text
        assert "The captions of beam search, the worst first" in page and "for-worst" in page
        assert re.search(r'"label":\s*"Width"', page) and re.search(r'"label":\s*"Backwards"', page)
