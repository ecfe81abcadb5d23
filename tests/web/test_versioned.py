"""/v1/: several captioners, errors of single images, streams, and what is counted."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.web import jobs, server
from prefixcap.web.served import serve_each
from tests.web.conftest import served
from tests.web.test_api import candidates, files, texts

TOO_LONG = "a large green ring and " * 40  # as a prompt it leaves no room for a caption


@pytest.fixture(scope="module")
def other() -> Captioner:
    """A captioner of the same encoder, which has learned something else."""
    torch.manual_seed(1)
    lm, identity = load_language_model("demo"), load_encoder("demo").identity
    return Captioner(lm, identity, {"name": "mlp", "prefix_length": 3}).eval()


@pytest.fixture(scope="module")
def two(captioner: Captioner, other: Captioner) -> Iterator[httpx.Client]:
    with served({"one": captioner, "the other": other}) as at, httpx.Client(base_url=at, timeout=60) as client:
        yield client


def counts(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """All samples of /metrics by name and values of labels, read by Prometheus's own parser."""
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


# ---- several captioners ------------------------------------------------------------------------------


def test_each_captioner_is_chosen_by_its_name(
    two: httpx.Client, captioner: Captioner, other: Captioner, pictures: list[Path]
) -> None:
    expected = {"one": captioner, "the other": other}
    for name in ("one", "the other", None, ""):
        fields = {"max_tokens": 10} if name is None else {"max_tokens": 10, "captioner": name}
        own = expected[name or "one"]
        answer = two.post("/v1/caption", data=fields, files=files(pictures[:3]))
        assert texts(answer) == candidates(own, pictures[:3], {"max_tokens": 10})
        fields.pop("max_tokens")
        vectors = two.post("/v1/interpret", data=fields, files=files(pictures[:1])).json()["images"][0]["vectors"]
        assert len(vectors) == own.prefix_length
    sums = [
        two.post("/v1/arithmetic", data={"texts": "a star", "captioner": name}).json()["captions"] for name in expected
    ]
    assert sums[0] != sums[1]
    for path in ("caption", "caption/stream", "interpret", "arithmetic"):
        answer = two.post(f"/v1/{path}", data={"captioner": "a third"}, files=files(pictures[:1]))
        assert answer.status_code == 422
        assert answer.json()["error"] == "unknown captioner 'a third': choose one of one, the other"


def test_info_is_of_each_captioner_and_the_old_one_of_the_first(two: httpx.Client, other: Captioner) -> None:
    info = two.get("/v1/info").json()
    assert [each["name"] for each in info["captioners"]] == ["one", "the other"]
    assert [each["prefix_length"] for each in info["captioners"]] == [4, 3]
    nothing = {"data": None, "images": {}, "before": [], "training": [], "limitations": []}
    assert info["captioners"][0]["trained_on"] == nothing
    old = two.get("/api/info").json()
    assert old["prefix_length"] == 4 and old["trained_on"] is None and old["limits"] == info["limits"]


def test_equal_encoders_are_in_memory_once_and_names_are_checked(captioner: Captioner, tmp_path: Path) -> None:
    torch.manual_seed(1)
    lm, identity = load_language_model("demo"), load_encoder("demo").identity
    second = Captioner(lm, identity, {"name": "mlp", "prefix_length": 3}).eval()
    one, two = serve_each({"a": captioner, "b": second}).values()
    assert second.encoder() is captioner.encoder() and one.batcher is not two.batcher
    assert one.batcher.thread is two.batcher.thread
    for name in ("", "x" * 61, "two\nlines"):
        with pytest.raises(InputError, match="is no name of a captioner"):
            serve_each({name: captioner})


def test_serve_says_what_it_serves(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: None)
    server.serve({"a": str(tmp_path / "saved"), "b c": str(tmp_path / "saved")}, port=0)
    assert capsys.readouterr().out.startswith("a, b c are served at http://127.0.0.1:")
    with pytest.raises(InputError, match="takes no datastore"):
        server.serve({"a": str(tmp_path / "saved")}, port=0, datastore="stores/none")


# ---- errors of single images ------------------------------------------------------------------------


def test_one_image_that_cannot_be_captioned_does_not_fail_the_others(
    two: httpx.Client, captioner: Captioner, pictures: list[Path]
) -> None:
    sent = [*files(pictures[:2]), ("images", ("bad.jpg", b"text")), *files(pictures[2:3])]
    fields: dict[str, Any] = {"prompts": ["", TOO_LONG, "", ""]}
    images = two.post("/v1/caption", data=fields, files=sent).json()["images"]
    assert [image["name"] for image in images] == [pictures[0].name, pictures[1].name, "bad.jpg", pictures[2].name]
    assert [bool(image["captions"]) for image in images] == [True, False, False, True]
    assert [("error" in image) for image in images] == [False, True, True, False]
    assert "context" in images[1]["error"] and images[2]["error"] == "bad.jpg: not an image"
    answer = two.post("/v1/caption", data={"prompts": TOO_LONG}, files=files(pictures[:2]))
    assert answer.status_code == 422 and answer.json()["error"].count("context") == 1  # said once


# ---- streams ----------------------------------------------------------------------------------------


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.iter_lines()]


def test_a_stream_has_what_the_plain_answer_has(two: httpx.Client, pictures: list[Path]) -> None:
    sent = [*files(pictures[:4]), ("images", ("bad.jpg", b"text"))]
    fields = {"count": 2, "max_tokens": 8, "captioner": "the other"}
    plain = two.post("/v1/caption", data=fields, files=sent).json()["images"]
    with two.stream("POST", "/v1/caption/stream", data=fields, files=sent) as response:
        given = {line.pop("index"): line for line in lines(response)}
    assert sorted(given) == list(range(5)) and given[4].keys() == {"name", "captions", "error"}
    for at, image in enumerate(plain):
        assert given[at]["name"] == image["name"] and given[at].get("error") == image.get("error")
        assert [one["text"] for one in given[at]["captions"]] == [one["text"] for one in image["captions"]]
    answer = two.post("/v1/caption/stream", data={"decode": "unknown"}, files=sent[:1])
    assert answer.status_code == 422 and "unknown" in answer.json()["error"]
    assert two.post("/v1/caption/stream", files=sent[4:]).json() == {
        "index": 0, "name": "bad.jpg", "captions": [], "error": "bad.jpg: not an image"
    }  # fmt: skip


def test_a_line_is_sent_while_others_are_worked_on_and_nothing_more_once_the_client_has_gone(
    captioner: Captioner, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model does one image at a time, and waits before the third."""
    go_on, seen = threading.Event(), list[int]()
    monkeypatch.setattr(server, "serve_each", lambda captioners: one_at_a_time(captioners))

    def one_at_a_time(captioners: Any) -> Any:
        made = serve_each(captioners)
        for each in made.values():
            each.batcher._most = 1
        return made

    with served(captioner) as at, httpx.Client(base_url=at, timeout=60) as client:
        run = jobs.Captions.run

        def held(job: jobs.Captions, of: Captioner, images: list[jobs.Picture]) -> list[jobs.Captioned]:
            seen.append(len(images))
            assert len(seen) < 3 or go_on.wait(60)
            return run(job, of, images)

        monkeypatch.setattr(jobs.Captions, "run", held)
        with client.stream("POST", "/v1/caption/stream", data={"max_tokens": 3}, files=files(pictures[:8])) as response:
            arriving = response.iter_lines()
            first = [json.loads(next(arriving)) for _ in range(2)]
        assert all(line["captions"] for line in first)
        go_on.set()
        for _ in range(100):
            if counts(client)["prefixcap_requests_in_progress",] <= 1:  # this one
                break
        assert client.get("/health").status_code == 200
        assert len(seen) <= 4 and counts(client)["prefixcap_queue_length", "captioner"] == 0


# ---- metrics ----------------------------------------------------------------------------------------


def test_metrics_count_requests_images_and_errors(captioner: Captioner, other: Captioner, pictures: list[Path]) -> None:
    with served({"one": captioner, "the other": other}) as at, httpx.Client(base_url=at, timeout=60) as client:
        before = counts(client)
        assert before["prefixcap_images_total", "the other"] == before["prefixcap_image_errors_total", "one"] == 0
        assert before["prefixcap_captioner_info", "the other", "demo", "demo"] == 1
        sent = [*files(pictures[:3]), ("images", ("bad.jpg", b"text"))]
        for path in ("/v1/caption", "/api/caption", "/v1/caption/stream"):
            client.post(path, data={"captioner": "the other", "max_tokens": 3}, files=sent)
        client.post("/v1/caption", data={"decode": "x"}, files=sent)
        for path in ("/no/such/path/1", "/no/such/path/2"):
            assert client.get(path).status_code == 404
        after = counts(client)
    assert after["prefixcap_images_total", "the other"] == 9
    assert after["prefixcap_image_errors_total", "the other"] == 3
    assert after["prefixcap_images_total", "one"] == after["prefixcap_queue_length", "one"] == 0
    assert after["prefixcap_requests_total", "/v1/caption", "200"] == 1
    assert after["prefixcap_requests_total", "/v1/caption", "422"] == 1
    assert after["prefixcap_requests_total", "/api/caption", "200"] == 1
    assert after["prefixcap_requests_total", "other", "404"] == 2  # nobody can make up labels
    assert after["prefixcap_request_seconds_count", "/v1/caption/stream"] == 1
    assert after["prefixcap_request_seconds_bucket", "+Inf", "/v1/caption"] == 2
    assert after["prefixcap_requests_in_progress",] == 1  # this one


def test_metrics_need_the_password(captioner: Captioner) -> None:
    with served(captioner, password="secret") as at:
        assert httpx.get(f"{at}/metrics").status_code == 401
        assert httpx.get(f"{at}/metrics", auth=("prometheus", "secret")).status_code == 200
