"""Several datastores behind one server: chosen by name in the API, on the page, and in `serve`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from playwright.sync_api import Browser, expect

from prefixcap.captioner import Captioner
from prefixcap.commands import serve
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.prompts import Datastore, build_provider
from prefixcap.textonly.memory import MemoryBank
from prefixcap.web import jobs, server
from tests.web.browsing import CHROMIUM, DESKTOP, PATIENCE, Visit, captions
from tests.web.conftest import served
from tests.web.test_api import files, texts

STORES = {
    "photos": ["a large red circle", "a yellow star at night", "a pink heart", "a blue square"],
    "art & more": ["a moon", "a cube", "a diamond in rain"],
}


@pytest.fixture(scope="module")
def switching(captioner: Captioner) -> Captioner:
    """The captioner, with retrieved captions as prompts, and two datastores."""
    switching = Captioner(captioner.language_model, captioner.encoder_identity, captioner.mapper_options).eval()
    switching.load_state_dict(captioner.state_dict())
    encoder = captioner.encoder()
    datastores = {
        name: Datastore(MemoryBank(encoder.encode_texts(own), own), encoder.identity, name)
        for name, own in STORES.items()
    }
    switching.use_prompts(build_provider({"name": "retrieved_captions", "k": 2}, encoder, datastores["photos"]))
    switching.use_datastore(datastores)
    return switching


@pytest.fixture(scope="module")
def expected(switching: Captioner, pictures: list[Path]) -> dict[str, list[tuple[str, list[str]]]]:
    """By datastore: of each picture the prompt that is made with that datastore alone, and the caption with that."""
    made = {}
    for name, own in STORES.items():
        encoder = switching.encoder()
        datastore = Datastore(MemoryBank(encoder.encode_texts(own), own), encoder.identity, name)
        alone = Captioner(switching.language_model, switching.encoder_identity, switching.mapper_options).eval()
        alone.load_state_dict(switching.state_dict())
        alone.use_prompts(build_provider({"name": "retrieved_captions", "k": 2}, encoder, datastore))
        prompts = [prompt.text for prompt in alone.image_prompts(alone.embed(pictures))]
        made[name] = list(zip(prompts, alone.candidates(pictures, 1), strict=True))
    assert made["photos"] != made["art & more"]
    return made


@pytest.fixture(scope="module")
def address(switching: Captioner) -> Iterator[str]:
    with served(switching) as at:
        yield at


def prompts_of(answer: httpx.Response) -> list[str]:
    return [image["prompt"]["text"] for image in answer.json()["images"]]


def test_a_datastore_is_chosen_by_name(
    address: str, pictures: list[Path], expected: dict[str, list[tuple[str, list[str]]]]
) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/api/info").json()["datastores"] == list(STORES)
        for fields in ({}, {"datastore": "photos"}, {"datastore": "art & more"}, {"datastore": ""}):
            answer = client.post("/api/caption", data=fields, files=files(pictures[:3]))
            alone = expected[fields.get("datastore") or "photos"][:3]
            assert (prompts_of(answer), texts(answer)) == ([text for text, _ in alone], [own for _, own in alone])
        item = STORES["art & more"][0]
        left = client.post("/api/caption", data={"datastore": "art & more", "without": item}, files=files(pictures[:2]))
        assert all(item not in prompt for prompt in prompts_of(left))
        for fields, reason in (
            ({"datastore": "coco"}, "unknown datastore 'coco': choose one of photos, art & more"),
            ({"datastore": "x" * 201}, "datastore: "),
            ({"datastore": "photos", "prompts": "a"}, "prompts are given"),
        ):
            answer = client.post("/api/caption", data=fields, files=files(pictures[:1]))
            assert answer.status_code == 422 and reason in answer.json()["error"], answer.text


def test_concurrent_requests_are_batched_by_datastore_and_do_not_mix(
    address: str,
    pictures: list[Path],
    expected: dict[str, list[tuple[str, list[str]]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches, run = list[tuple[str | None, int]](), jobs.Captions.run

    def recorded(job: jobs.Captions, of: Captioner, images: list[jobs.Picture]) -> list[jobs.Captioned]:
        batches.append((job.datastore, len(images)))
        return run(job, of, images)

    monkeypatch.setattr(jobs.Captions, "run", recorded)
    asked = [(number % 10, [*STORES, None][number % 3]) for number in range(30)]

    def ask(picture: int, name: str | None) -> httpx.Response:
        fields = {} if name is None else {"datastore": name}
        return httpx.post(f"{address}/api/caption", data=fields, files=files([pictures[picture]]), timeout=120)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, *zip(*asked, strict=True)))
    for (picture, name), answer in zip(asked, answers, strict=True):
        prompt, own = expected[name or "photos"][picture]
        assert (prompts_of(answer), texts(answer)) == ([prompt], [own])
    assert {name for name, _ in batches} == set(STORES)  # no name: the first, in the same batches
    assert sum(size for _, size in batches) == 30 and max(size for _, size in batches) > 1


def test_a_captioner_without_several_has_no_names(client: httpx.Client, pictures: list[Path]) -> None:
    assert client.get("/api/info").json()["datastores"] == []
    answer = client.post("/api/caption", data={"datastore": "photos"}, files=files(pictures[:1]))
    assert answer.status_code == 422 and "there are none to choose from" in answer.json()["error"]


@pytest.fixture
def client(captioner: Captioner) -> Iterator[httpx.Client]:
    with served(captioner) as at, httpx.Client(base_url=at, timeout=60) as client:
        yield client


def test_use_several_in_python(switching: Captioner, pictures: list[Path]) -> None:
    embeddings = switching.embed(pictures[:2])
    (one, _), (other, _) = (switching.image_prompts(embeddings, datastore=name) for name in STORES)
    assert one.items[0].text in STORES["photos"] and other.items[0].text in STORES["art & more"]
    assert switching.image_prompts(embeddings)[0] == one
    with pytest.raises(InputError, match="unknown datastore 'x': choose one of photos, art & more"):
        switching.image_prompts(embeddings, datastore="x")
    with pytest.raises(InputError, match="no datastore is given"):
        switching.use_datastore({})
    assert tuple(switching.datastores) == tuple(STORES)


def test_serve_takes_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def _named(words: list[str]) -> Any:
        return serve._named(words, "datastore", "--datastore NAME=STORE")

    assert _named([]) is None
    assert _named(["stores/coco"]) == "stores/coco"
    assert _named(["a=stores/coco"]) == {"a": "stores/coco"}
    assert _named(["a=stores/coco", "b c=https://example.org/x?y=z"]) == {
        "a": "stores/coco", "b c": "https://example.org/x?y=z"
    }  # fmt: skip
    assert _named(["stores/coco/", "b=art"]) == {"coco": "stores/coco/", "b": "art"}
    Path("a=b").mkdir()
    assert _named(["a=b"]) == "a=b"
    assert _named(["https://example.org/x?y=z"]) == "https://example.org/x?y=z"
    for words in (["a=x", "a=y"], ["x/art", "y/art"]):
        with pytest.raises(InputError, match="two datastores are called a"):
            _named(words)
    with pytest.raises(InputError, match="there is no feature store at"):
        server.serve(port=0, datastore={"a": "nowhere"}, ckpt=_retrieving(tmp_path))


def _retrieving(folder: Path) -> str:
    torch.manual_seed(0)
    encoder = load_encoder("demo")
    captioner = Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 4})
    own = STORES["photos"]
    datastore = Datastore(MemoryBank(encoder.encode_texts(own), own), encoder.identity, "these")
    captioner.use_prompts(build_provider({"name": "retrieved_captions", "k": 2}, encoder, datastore))
    captioner.save_pretrained(folder / "saved")
    return str(folder / "saved")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_page_switches(
    browser: Browser,
    address: str,
    switching: Captioner,
    pictures: list[Path],
    expected: dict[str, list[tuple[str, list[str]]]],
) -> None:
    def written(name: str) -> list[list[str]]:
        return switching.candidates(pictures[:1], 3, by_similarity=True, prompts=[expected[name][0][0]])

    visit = Visit(browser, address, DESKTOP)
    page, select = visit.page, visit.page.get_by_label("Retrieve captions from")
    assert select.locator("option").all_inner_texts() == list(STORES)
    page.set_input_files("#files", pictures[:1])
    assert captions(page, 1) == written("photos")
    select.select_option("art & more")
    page.get_by_role("button", name="Write again").click()
    expect(page.locator(".items .item").first).to_have_text(*in_prompt(expected["art & more"][0][0]), timeout=PATIENCE)
    assert captions(page, 1) == written("art & more")
    page.get_by_label("About the pictures").fill("A large green ring")  # takes the place of what is retrieved
    page.set_input_files("#files", pictures[:1])
    assert captions(page, 2)[:1] == switching.candidates(
        pictures[:1], 3, prompts=["A large green ring"], by_similarity=True
    )
    assert visit.mistakes == []
    page.close()


def in_prompt(text: str) -> list[Any]:
    """The first of the captions in a prompt."""
    return [text.split("\n\n")[1]]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_page_of_one_datastore_has_no_choice(browser: Browser, retrieving: Captioner) -> None:
    with served(retrieving) as address:
        visit = Visit(browser, address, DESKTOP)
        expect(visit.page.get_by_label("Retrieve captions from")).to_have_count(0)
        expect(visit.page.get_by_label("About the pictures")).to_have_count(1)
        visit.page.close()
