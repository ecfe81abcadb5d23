"""The captioner that comes with the package, by its name and as the default; another one stands in its place here."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import prefixcap
from prefixcap import photos
from prefixcap.captioner import Captioner
from prefixcap.commands.common.formats import LOW
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.errors import InputError
from prefixcap.evaluation.caption_files import read_candidates
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.web import server
from tests.commands.conftest import Command
from tests.conftest import ROOT
from tests.web.conftest import served

QUICK = ("--set", "max_tokens=6")
LINE = (
    "Captioned by prefixcap-photos, the captioner that comes with the package; its model card: prefixcap info photos\n"
)


@pytest.fixture
def pictures(bundled: Path) -> list[str]:
    """Five pictures, relative to the working folder."""
    import numpy as np

    generator = np.random.default_rng(1)
    for number in range(5):
        draw(random_scene(generator), generator).save(f"{number}.png")
    return [f"{number}.png" for number in range(5)]


def cosines(captioner: Captioner, pictures: list[str], captions: list[str]) -> list[float]:
    """Computed one by one."""
    encoder = captioner.encoder()
    return [
        torch.cosine_similarity(captioner.embed([picture]), encoder.encode_texts([caption])).item()
        for picture, caption in zip(pictures, captions, strict=True)
    ]


def test_the_default_is_said_in_one_line(command: Command, pictures: list[str]) -> None:
    status, out, err = command("caption", *pictures, *QUICK, "--no-similarity")
    expected = prefixcap.load("photos").caption(pictures, max_tokens=6)
    assert status == 0 and err.startswith(LINE)  # and a progress bar, if it takes longer than a second
    assert out == "".join(f"{picture}\t{caption}\n" for picture, caption in zip(pictures, expected, strict=True))
    assert command("caption", *pictures, *QUICK, "--no-similarity", "--ckpt", "photos") == (0, out, "")
    status, out, err = command("interpret", pictures[0])
    assert status == 0 and err.startswith(LINE) and out.startswith(f"{pictures[0]}: ")


def test_similarities_in_every_format(command: Command, pictures: list[str], tmp_path: Path) -> None:
    captioner = prefixcap.load("photos")
    texts = captioner.caption(pictures, max_tokens=6)
    right = cosines(captioner, pictures, texts)
    assert min(right) < 0.05 < max(right)
    lines = [line.split("\t") for line in command("caption", *pictures, *QUICK).out.splitlines()]
    shown = [f"{cosine:.2f} ({LOW})" if cosine < 0.05 else f"{cosine:.2f}" for cosine in right]
    assert lines == [list(row) for row in zip(pictures, texts, shown, strict=True)]

    rows = list(csv.DictReader(io.StringIO(command("caption", *pictures, *QUICK, "--format", "csv").out)))
    assert [row["caption"] for row in rows] == texts
    assert [float(row["similarity"]) for row in rows] == pytest.approx(right, abs=1e-5)
    beams = ("--count", "2", "--set", "beams=3")
    for form in ("json", "jsonl"):
        out = command("caption", *pictures, *QUICK, *beams, "--format", form).out
        entries = json.loads(out) if form == "json" else [json.loads(line) for line in out.splitlines()]
        candidates = captioner.candidates(pictures, 2, max_tokens=6, beams=3)
        assert [entry["captions"] for entry in entries] == candidates
        for number in range(2):
            own = cosines(captioner, pictures, [row[number] for row in candidates])
            assert [entry["similarities"][number] for entry in entries] == pytest.approx(own, abs=1e-5)
    assert json.loads(command("caption", *pictures, *QUICK, "--format", "coco").out)[0].keys() == {
        "image_id",
        "caption",
    }


@pytest.mark.parametrize("form", ["text", "csv", "json", "jsonl"])
def test_captions_with_similarities_are_read_again(command: Command, pictures: list[str], form: str) -> None:
    file = {"text": "captions.txt"}.get(form, f"captions.{form}")
    assert command("caption", *pictures, *QUICK, "--format", form, "--out", file).status == 0
    texts = prefixcap.load("photos").caption(pictures, max_tokens=6)
    assert read_candidates(file) == {picture: [text] for picture, text in zip(pictures, texts, strict=True)}


def test_similarities_of_other_captioners(
    command: Command, mistaken: Callable[..., str], pictures: list[str], bundled: Path
) -> None:
    captioner = prefixcap.load("photos")
    captioner.low_similarity = None
    captioner.save_pretrained("other")
    text = captioner.caption(pictures[:1], max_tokens=6)
    assert command("caption", pictures[0], *QUICK, "--ckpt", "other") == (0, f"{pictures[0]}\t{text[0]}\n", "")
    (cosine,) = cosines(captioner, pictures[:1], text)
    out = command("caption", pictures[0], *QUICK, "--ckpt", "other", "--similarity").out
    assert out == f"{pictures[0]}\t{text[0]}\t{cosine:.2f}\n"
    reranked = ("--rerank", "3", "--set", "beams=3", "--similarity", "--format", "json")
    (entry,) = json.loads(command("caption", pictures[0], *QUICK, "--ckpt", "other", *reranked).out)
    (best,) = captioner.caption(pictures[:1], max_tokens=6, beams=3, rerank=3)
    assert entry["captions"] == [best]
    assert entry["similarities"] == pytest.approx(cosines(captioner, pictures[:1], [best]), abs=1e-5)
    assert "--format coco has no similarities" in mistaken(
        "caption", pictures[0], "--ckpt", "other", "--similarity", "--format", "coco"
    )


def test_a_folder_of_that_name(mistaken: Callable[..., str], command: Command, pictures: list[str]) -> None:
    """One with pictures is none with a captioner; where both may be meant, nothing is chosen silently."""
    captioner = prefixcap.load("photos")
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(Path(pictures[0]).read_bytes())
    assert command("caption", "photos", *QUICK, "--ckpt", "photos").out.startswith("photos/a.png\t")
    with pytest.raises(InputError, match="photos holds no captioner"):
        prefixcap.load(Path("photos"))

    captioner.low_similarity = 0.9
    captioner.save_pretrained("photos")
    for function in (prefixcap.load, Captioner.from_pretrained):
        with pytest.raises(InputError, match=r"there is one in this folder, too: give \./photos for that, or .*/capt"):
            function("photos")
        assert function("./photos").low_similarity == function(Path("photos")).low_similarity == 0.9
        assert function(photos.CAPTIONER).low_similarity == 0.05
    assert "give ./photos for that" in mistaken("caption", pictures[0], "--ckpt", "photos")
    assert "give ./photos for that" in mistaken("eval", "ckpt=photos")
    assert f"({LOW})" in command("caption", pictures[0], *QUICK, "--ckpt", "./photos").out
    assert command("caption", pictures[0], *QUICK).err.startswith(LINE)  # the default is no name


@pytest.mark.parametrize("damage", ["weights", "card", "missing", "digests", "nothing"])
def test_damaged_files_are_one_line(
    damage: str, mistaken: Callable[..., str], command: Command, pictures: list[str], bundled: Path
) -> None:
    file = bundled / {"weights": "mapper.safetensors", "card": "README.md"}.get(damage, "language_model/config.json")
    if damage in ("weights", "card"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    elif damage == "missing":
        file.unlink()
    else:
        file = bundled / photos.DIGESTS
        file.write_text("") if damage == "digests" else file.unlink()
    photos.require_captioner.cache_clear()
    message = f"error: prefixcap-photos, which comes with the package, is damaged ({file}): install prefixcap again\n"
    for words in (("caption", pictures[0]), ("info", "photos"), ("caption", pictures[0], "--ckpt", "photos")):
        assert mistaken(*words) == message
    report = {row["name"]: row for row in json.loads(command("doctor", "--json").out)}
    assert report["photos"]["state"] == "broken" and str(file) in report["photos"]["note"]


def test_half_precision_is_read_as_single_precision(bundled: Path, tmp_path: Path) -> None:
    captioner = prefixcap.load("photos")
    assert {weight.dtype for weight in captioner.parameters()} == {torch.float32}
    for file in (bundled / "mapper.safetensors", *bundled.glob("language_model/*.safetensors")):
        with safe_open(file, "pt") as opened:
            assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F16"}  # noqa: SIM118
    captioner.save_pretrained(tmp_path / "full")
    weights = load_file(tmp_path / "full" / "mapper.safetensors")
    assert all(torch.equal(weight, weight.half().float()) for weight in weights.values())
    assert (bundled / "mapper.safetensors").stat().st_size < 0.55 * (
        tmp_path / "full/mapper.safetensors"
    ).stat().st_size

    next(captioner.mapper.parameters()).data[0] = 1e5
    with pytest.raises(InputError, match=r"weight '.*' is too large for float16: save it as it is"):
        captioner.save_pretrained(tmp_path / "large", dtype="float16")
    captioner.save_pretrained(tmp_path / "large", dtype="bfloat16")
    save_file(weights, tmp_path / "large" / "mapper.safetensors")
    assert prefixcap.load(tmp_path / "large").low_similarity == 0.05


def test_info_names_the_card_and_its_scores(command: Command, bundled: Path) -> None:
    (bundled / "README.md").write_text(
        "---\nmodel-index:\n- name: x\n  results:\n  - dataset: {name: flickr8k-test}\n    metrics:\n"
        "    - {name: BLEU-4, value: 0.25, type: bleu}\n    - {name: CIDEr, value: 0.625}\n---\n# x\n"
    )
    photos.write_digests(bundled)
    out = command("info", "photos").out
    assert f"model card       {bundled}/README.md" in out and "flickr8k-test" in out and "0.625" in out
    assert "low similarity   below 0.05: unlike the images it learned from" in out
    described = json.loads(command("info", "photos", "--json").out)
    assert described["evaluations"] == {"flickr8k-test": {"BLEU-4": 0.25, "CIDEr": 0.625}}

    for text, evaluations in (("no card", {}), ("---\nlicense: mit\n---\n", {})):
        (bundled / "README.md").write_text(text)
        assert json.loads(command("info", bundled, "--json").out)["evaluations"] == evaluations
    for text, problem in (("---\na: [\n---\n", "is no YAML"), ("---\nmodel-index: 3\n---\n", "model-index: Input sh")):
        (bundled / "README.md").write_text(text)
        status, _, err = command("info", bundled)
        assert status == 2 and problem in err and err.count("\n") == 1


def test_it_is_served(bundled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import httpx

    captioner = prefixcap.load("photos")
    with served(captioner) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/api/info").json()["low_similarity"] == 0.05
        assert re.search(r"lowSimilarity.{0,12}: 0\.05", client.get("/").text)
    assert LOW.capitalize() in (ROOT / "prefixcap/web/static/cards.js").read_text()

    monkeypatch.setattr(server.Server, "run", lambda self, sockets: None)
    server.serve(port=0)
    told = capsys.readouterr().out.splitlines()[0]
    about = "prefixcap-photos, the captioner that comes with the package (prefixcap info photos), is served at http://"
    assert told.startswith(about)


def test_a_broken_picture_is_as_before(mistaken: Callable[..., str], command: Command, pictures: list[str]) -> None:
    Path("empty.png").touch()
    status, out, err = command("caption", pictures[0], "empty.png", *QUICK)
    assert (status, out.count("\n")) == (1, 1) and err.startswith(LINE + "skipped 1 of 2 images")
    Image.new("RGB", (8, 8)).save("small.png")
    assert command("caption", "small.png", *QUICK).status == 0


def test_a_captioner_can_ask_for_candidates_to_choose_from(
    command: Command, mistaken: Callable[..., str], pictures: list[str]
) -> None:
    captioner = prefixcap.load("photos")
    likeliest = captioner.caption(pictures, max_tokens=6)
    captioner.rerank = 4
    captioner.save_pretrained("choosing")
    choosing = prefixcap.load("./choosing")
    candidates = captioner.candidates(pictures, 4, max_tokens=6)
    nearest = [
        max(texts, key=lambda text, picture=picture: cosines(captioner, [picture], [text]))
        for picture, texts in zip(pictures, candidates, strict=True)
    ]
    assert nearest != likeliest
    assert choosing.caption(pictures, max_tokens=6) == nearest
    assert choosing.caption(choosing.embed(pictures), max_tokens=6) == nearest
    assert choosing.caption(pictures, max_tokens=6, rerank=0) == likeliest
    for decode, options in {"greedy": {}, "beam": {"beams": 3}}.items():  # which give fewer than four
        assert choosing.caption(pictures, decode, max_tokens=6, **options) == captioner.caption(
            pictures, decode, max_tokens=6, rerank=0, **options
        )

    run = ("caption", *pictures, *QUICK, "--ckpt", "./choosing", "--no-similarity")
    shown = [line.split("\t")[1] for line in command(*run).out.splitlines()]
    assert shown == nearest
    assert [line.split("\t")[1] for line in command(*run, "--rerank", "0").out.splitlines()] == likeliest
    assert command(*run, "--decode", "greedy").status == 0
    assert "of 4 candidates of beam search" in " ".join(command("info", "./choosing").out.split())

    writer = StoreWriter(Path("store"), captioner.encoder_identity, "pictures", Path(), job="x", shards=1)
    records = [ImageRecord(picture, picture, "test", ("a red circle", "a blue square")) for picture in pictures]
    writer.write_piece(0, 0, 1, records, {"images/embedding": captioner.embed(pictures).half().numpy()}, [])
    join(Path("store"))
    evaluation = ("eval", "ckpt=./choosing", "data=demo", "data.store=store", "metrics=[BLEU]", "decode.max_tokens=6")
    for options, expected in ((), nearest), (("decode.rerank=0",), likeliest):
        assert command(*evaluation, "out=scored", *options).status == 0
        entries = json.loads(Path("scored/captions.json").read_text())
        assert [entry["caption"] for entry in entries] == expected

    description = json.loads(Path("choosing/config.json").read_text())
    Path("choosing/config.json").write_text(json.dumps(description | {"rerank": -1}))
    assert "rerank" in mistaken("caption", pictures[0], "--ckpt", "./choosing")
