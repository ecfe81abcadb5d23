"""Prompts of images in the HTTP API and in `serve`: given by the client, or made by the captioner."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.utils.images import open_image
from prefixcap.web import jobs, server
from tests.web.conftest import CAPTIONS, served
from tests.web.test_api import files, texts

KNOWN = ["A large green ring", "", "In the night sky a small yellow star"]


def captioned(captioner: Captioner, pictures: list[Path], prompts: list[str], **options: Any) -> list[list[str]]:
    """What the captioner gives for pictures with prompts, each alone."""
    return [
        captioner.candidates([picture], 1, prompts=[prompt], **options)[0]
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]


def test_a_prompt_for_each_image_or_one_for_all(
    client: httpx.Client, captioner: Captioner, pictures: list[Path]
) -> None:
    answer = client.post("/api/caption", data={"prompts": KNOWN}, files=files(pictures[:3]))
    expected = captioned(captioner, pictures[:3], KNOWN)
    assert texts(answer) == expected
    assert all("prompt" not in image for image in answer.json()["images"])  # the captioner made none
    answer = client.post("/api/caption", data={"prompts": KNOWN[0]}, files=files(pictures[:3]))
    assert texts(answer) == captioned(captioner, pictures[:3], KNOWN[:1] * 3)
    plain = texts(client.post("/api/caption", files=files(pictures[:3])))
    assert plain[0] != expected[0] and plain[1] == expected[1]
    drawn = {"decode": "nucleus", "seed": 3}
    answer = client.post("/api/caption", data={"prompts": KNOWN, **drawn}, files=files(pictures[:3]))
    assert texts(answer) == captioned(captioner, pictures[:3], KNOWN, **drawn)


def test_a_bad_file_does_not_move_the_prompts_of_the_others(
    client: httpx.Client, captioner: Captioner, pictures: list[Path]
) -> None:
    sent = files(pictures[:2])
    sent.insert(1, ("images", ("bad.jpg", b"text")))
    answer = client.post("/api/caption", data={"prompts": [KNOWN[0], "lost", KNOWN[2]]}, files=sent)
    first, none, second = texts(answer)
    assert [first, second] == captioned(captioner, pictures[:2], [KNOWN[0], KNOWN[2]]) and none == []


def test_images_of_different_prompts_are_batched_and_one_that_is_too_long_fails_alone(
    captioner: Captioner, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = server.build_app(captioner).state.batchers[0]
    batches, run = list[int](), jobs.Captions.run

    def recorded(job: jobs.Captions, of: Captioner, images: list[jobs.Picture]) -> list[jobs.Captioned]:
        batches.append(len(images))
        return run(job, of, images)

    monkeypatch.setattr(jobs.Captions, "run", recorded)
    pixels = captioner.encoder().preprocess(open_image(pictures[0]))

    def submit(*prompts: str) -> list[Any]:
        async def together() -> list[Any]:
            items = [jobs.Picture(pixels, prompt) for prompt in prompts]
            return await asyncio.gather(
                *(batcher.submit(jobs.Captions(), item, object()) for item in items), return_exceptions=True
            )

        return asyncio.run(together())

    expected = captioned(captioner, pictures[:1] * 3, KNOWN)
    assert [[caption.text for caption in one.captions] for one in submit(*KNOWN)] == expected
    assert batches == [3]
    first, long, second = submit(KNOWN[0], "a red star " * 80, KNOWN[1])
    assert [[caption.text for caption in one.captions] for one in (first, second)] == expected[:2]
    assert isinstance(long, InputError) and "exceed the context" in str(long)
    assert batches == [3, 3, 1, 1, 1]
    batcher.thread.shutdown()


def test_a_long_prompt_leaves_room_for_a_shorter_caption(captioner: Captioner, pictures: list[Path]) -> None:
    """Nobody chose 67 tokens, which do not fit behind it; other images are captioned as they would be alone."""
    context = captioner.language_model.context
    assert context is not None
    long = "a red star " * 30
    room = context - captioner.prefix_length - len(captioner.language_model.tokenize_prompt(long))
    assert 0 < room < 67
    with served(captioner) as address, httpx.Client(base_url=address, timeout=60) as client:
        for options in ({}, {"decode": "nucleus", "seed": 3}):
            answer = client.post("/api/caption", data={"prompts": ["", long], **options}, files=files(pictures[:2]))
            first, second = texts(answer)
            assert [first] == captioned(captioner, pictures[:1], [""], **options)
            assert [second] == captioned(captioner, pictures[1:2], [long], max_tokens=room, **options)


def test_prompts_that_the_captioner_makes_are_in_the_answer_and_items_can_be_left_out(
    retrieving: Captioner, pictures: list[Path]
) -> None:
    made = retrieving.image_prompts(retrieving.embed(pictures[:2]))
    wrong = made[0].items[0].text
    with served(retrieving) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/api/info").json()["prompts"] == "retrieved_captions"
        answer = client.post("/api/caption", files=files(pictures[:2]))
        assert texts(answer) == retrieving.candidates(pictures[:2], 1)
        for image, prompt in zip(answer.json()["images"], made, strict=True):
            assert image["prompt"]["text"] == prompt.text
            assert [item["text"] for item in image["prompt"]["items"]] == [item.text for item in prompt.items]
            scores = [item["score"] for item in image["prompt"]["items"]]
            assert scores == pytest.approx([item.score for item in prompt.items], abs=1e-5)

        left = client.post("/api/caption", data={"without": wrong}, files=files(pictures[:1]))
        kept = [item.text for item in made[0].items[1:]]
        composed = "Similar images show\n\n" + "\n\n".join(kept) + ".\n\nThis image shows"
        assert left.json()["images"][0]["prompt"]["text"] == composed
        assert [item["text"] for item in left.json()["images"][0]["prompt"]["items"]] == kept
        assert texts(left) == captioned(retrieving, pictures[:1], [composed])
        nothing = client.post("/api/caption", data={"without": CAPTIONS}, files=files(pictures[:1]))
        assert nothing.json()["images"][0]["prompt"] == {"text": "", "items": []}
        assert texts(nothing) == captioned(retrieving, pictures[:1], [""])

        given = client.post("/api/caption", data={"prompts": ["", KNOWN[0]]}, files=files(pictures[:2]))
        assert texts(given) == captioned(retrieving, pictures[:2], ["", KNOWN[0]])
        assert all("prompt" not in image for image in given.json()["images"])


def nearest(captioner: Captioner, picture: Path, captions: list[str], count: int) -> tuple[list[str], torch.Tensor]:
    """The captions that are nearest to a picture, and (1, 1 + count, D) its embedding and theirs."""
    image, texts = captioner.embed([picture]), captioner.encoder().encode_texts(captions)
    order = torch.cosine_similarity(image, texts).argsort(descending=True)[:count]
    return [captions[place] for place in order], torch.cat((image, texts[order])).unsqueeze(0)


def test_a_mapper_that_reads_retrieved_captions(fusing: Captioner, pictures: list[Path]) -> None:
    with pytest.raises(InputError, match="reads 3 retrieved captions beside each image, and has no datastore"):
        server.build_app(Captioner(fusing.language_model, fusing.encoder_identity, fusing.mapper_options))
    with served(fusing) as address, httpx.Client(base_url=address, timeout=60) as client:
        for fields, stored in (
            ({}, CAPTIONS),
            ({"datastore": "fewer"}, CAPTIONS[1:5]),
            ({"without": [CAPTIONS[1], "snow"]}, [CAPTIONS[0], *CAPTIONS[2:5]]),
            ({"datastore": "fewer", "prompts": ["", "", "A moon"]}, CAPTIONS[1:5]),
        ):
            answer = client.post("/api/caption", data=fields, files=files(pictures[:3])).json()["images"]
            for number, (picture, one) in enumerate(zip(pictures, answer, strict=False)):
                read, embeddings = nearest(fusing, picture, stored, 3)
                prompt = fields["prompts"][number] if "prompts" in fields else one["prompt"]["text"]
                assert [item["text"] for item in one["retrieved"]] == read
                cosines = torch.cosine_similarity(embeddings[0, :1], embeddings[0, 1:])
                assert [item["score"] for item in one["retrieved"]] == pytest.approx(cosines.tolist(), abs=1e-4)
                (written,) = fusing.candidates(embeddings, 1, embeddings=embeddings[:, 0], prompts=[prompt])
                assert [caption["text"] for caption in one["captions"]] == written
                assert ("prompt" in one) == ("prompts" not in fields)
        left = client.post("/api/caption", data={"without": CAPTIONS[:4]}, files=files(pictures[:1]))
        assert left.status_code == 422 and "only 2 different ones left" in left.json()["error"]


def test_mistakes_of_prompts_are_named(client: httpx.Client, retrieving: Captioner, pictures: list[Path]) -> None:
    for fields, reason in (
        ({"prompts": ["a", "b"]}, "prompts: 2 are given for 3 images"),
        ({"prompts": ["a"] * 17}, "prompts: too many"),
        ({"prompts": "a" * 1001}, "prompts 0: "),
        ({"prompts": "a b " * 200}, "exceed the context"),
        ({"without": ["snow"]}, "this captioner makes none"),
    ):
        answer = client.post("/api/caption", data=fields, files=files(pictures[:3]))
        assert answer.status_code == 422 and reason in answer.json()["error"], answer.text
    with served(retrieving) as address:
        fields = {"without": "snow", "prompts": "a"}
        answer = httpx.post(f"{address}/api/caption", data=fields, files=files(pictures[:1]), timeout=60)
        assert answer.status_code == 422 and "prompts are given" in answer.json()["error"]


# ---- prefixcap serve --datastore -----------------------------------------------------------------------


@pytest.fixture
def store(captioner: Captioner, tmp_path: Path) -> Path:
    """A feature store of captions without images."""
    records = [ImageRecord(f"sentence {number}", "", "train", (text,)) for number, text in enumerate(CAPTIONS)]
    made = StoreWriter(tmp_path / "store", captioner.encoder_identity, "sentences", tmp_path, "job", 1)
    embeddings = captioner.encoder().encode_texts(CAPTIONS).numpy()
    made.write_piece(0, 0, 1, records, {"captions/embedding": embeddings}, [])
    join(tmp_path / "store")
    return tmp_path / "store"


def test_serve_retrieves_from_a_datastore_or_says_what_it_needs(
    captioner: Captioner, retrieving: Captioner, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner.save_pretrained(tmp_path / "plain")
    retrieving.save_pretrained(tmp_path / "retrieving")
    built = list[dict[str, Captioner]]()
    build_app = server.build_app

    def recorded(captioners: dict[str, Captioner], *arguments: Any) -> FastAPI:
        built.append(captioners)
        return build_app(captioners, *arguments)

    monkeypatch.setattr(server, "build_app", recorded)
    monkeypatch.setattr(server.Server, "run", lambda *_: None)
    server.serve(str(tmp_path / "retrieving"), port=0, datastore=str(store))
    embeddings = captioner.encoder().encode_texts(["a blue square"])
    assert built[0]["retrieving"].image_prompts(embeddings) == retrieving.image_prompts(embeddings)
    for name, datastore, reason in (
        ("retrieving", None, "need a datastore"),
        ("plain", str(store), "takes no datastore"),
        ("retrieving", str(tmp_path / "nothing"), "nothing"),
    ):
        with pytest.raises(InputError, match=reason):
            server.serve(str(tmp_path / name), port=0, datastore=datastore)
