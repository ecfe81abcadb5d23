"""eval.py, in this process: where results go, what is told before anything takes long, and what is new in captions."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.language import load_language_model
from prefixcap.metrics import cider
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join

REFERENCES = {7: ["a red circle", "a red ball"], 8: ["a blue square"], 9: ["a green star", "one green star"]}
QUICK = ("decode.max_tokens=4", "metrics=CIDEr")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


def make_store(path: Path, encoder: Encoder, training: str = "a dog", wrong: int | None = None) -> str:
    """A store of three test images, embedded by their references, and one of training with this caption."""
    records = [ImageRecord(1, "1.jpg", "train", (training,))]
    records += [ImageRecord(image, f"{image}.jpg", "test", (*texts,)) for image, texts in REFERENCES.items()]
    embeddings = encoder.encode_texts([record.captions[0] for record in records]).half().numpy().copy()
    embeddings[[record.id == wrong for record in records]] = np.nan
    made = StoreWriter(path, encoder.identity, "words", path.parent, "job", 1)
    made.write_piece(0, 0, 1, records, {"images/embedding": embeddings}, ())
    join(path)
    return FeatureStore(path).location


@pytest.fixture
def run_folder(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that made two checkpoints of an untrained captioner; the test runs beside it."""
    torch.manual_seed(0)
    learned_from = make_store(tmp_path / "learned", encoder)
    mapper = {"name": "mlp", "prefix_length": 4}
    captioner = Captioner(
        load_language_model("demo"), encoder.identity, mapper, trained_on={"store": learned_from}
    ).eval()
    weights = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        file = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        torch.save({"prefixcap": captioner.describe(), "state_dict": weights}, file)
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def evaluate(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", *options])
    runpy.run_module("prefixcap.commands.eval", run_name="__main__")


def test_each_checkpoint_and_way_of_decoding_has_a_folder(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in (
        ["ckpt=run/checkpoints/best.ckpt"],
        ["ckpt=run/checkpoints/last.ckpt"],
        ["ckpt=run/checkpoints/best.ckpt", "decode.beams=3"],
        ["ckpt=run/checkpoints/best.ckpt", "decode=diverse_beam", "decode.prompt='a photo of'"],
    ):
        evaluate(monkeypatch, *options, *QUICK)
    written = {folder.name for folder in (run_folder / "eval").iterdir() if (folder / "statistics.npz").is_file()}
    assert written == {
        "learned-test-beam-max_tokens-4",
        "learned-test-beam-max_tokens-4-last",
        "learned-test-beam-beams-3-max_tokens-4",
        "learned-test-diverse_beam-prompt-a-photo-of-max_tokens-4",
    }


def test_captions_of_one_name_in_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored against one split of a Karpathy file; half a surrogate pair in them harms nobody."""
    monkeypatch.chdir(tmp_path)
    images = [
        {"cocoid": image, "split": "test", "sentences": [{"raw": text} for text in texts]}
        for image, texts in REFERENCES.items()
    ]
    images.append({"cocoid": 1, "split": "restval", "sentences": [{"raw": "a dog"}]})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        entries = [{"image_id": image, "caption": f"{name} \ud83d"} for image in REFERENCES]
        (tmp_path / name / "captions.json").write_text(json.dumps(entries))
        evaluate(monkeypatch, f"captions={name}/captions.json", "references=dataset.json", "metrics=[ROUGE-L]")
    for name in ("x", "y"):
        written = json.loads((tmp_path / "runs" / "eval" / name / "captions" / "captions.json").read_text())
        assert written[0]["caption"] == f"{name} \ufffd"


def test_captions_of_a_part_of_the_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: Callable[..., str],
) -> None:
    """What `prefixcap caption` wrote, three captions an image, against COCO annotations in another order."""
    monkeypatch.chdir(tmp_path)
    annotations = [{"image_id": image, "caption": text} for image, texts in REFERENCES.items() for text in texts]
    images = [{"id": image} for image in (9, 7, 8)]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    rows = [{"image": f"val2014/COCO_val2014_{n:012}.jpg", "captions": [REFERENCES[n][0], "no", "no"]} for n in (7, 9)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"captions={tmp_path}/captions.jsonl", f"references={tmp_path}/annotations.json", "metrics=[CIDEr]"]
    told = mistake("eval", *options)
    assert "no caption in" in told and "for 1 of 3 images (image 8): caption these, too, or give subset=true" in told
    monkeypatch.chdir(tmp_path)
    evaluate(monkeypatch, *options, "subset=true", "out=scores")
    printed = capsys.readouterr().out
    assert (
        "subset: 2 of 3 images have a caption" in printed
        and "2 images have several captions: the first, the best" in printed
    )
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    part = {image: REFERENCES[image] for image in (9, 7)}
    assert scores["CIDEr"] == cider({image: texts[0] for image, texts in part.items()}, part) > 0
    assert scores["images"] == 2 and "subset: 2 of 3 images have a caption" in scores["notes"]
    assert [entry["image_id"] for entry in json.loads((tmp_path / "scores" / "captions.json").read_text())] == [9, 7]
    rows.append({"image": "stranger.jpg", "captions": ["a dog"]})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "images with a caption but no references (1): 'stranger.jpg'" in mistake("eval", *options, "subset=true")
    assert "subset=true is for captions=FILE" in mistake("eval", f"ckpt={tmp_path}", "subset=true")


def test_captions_of_a_store_by_the_names_of_its_files(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    data = ["data=coco", f"data.store={make_store(tmp_path / 'store', encoder)}", "metrics=[CIDEr]", "out=scores"]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"photos/{n}.jpg,{n}\n" for n in REFERENCES))
    evaluate(monkeypatch, "captions=captions.csv", *data)
    written = json.loads((tmp_path / "scores" / "captions.json").read_text())
    assert written == [{"image_id": image, "caption": f"{image}"} for image in REFERENCES]


def test_several_captions_of_an_image_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES))
    sets = {image: [texts[0], f"picture {image}"] for image, texts in reversed(REFERENCES.items())}
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(sets))
    options = [f"captions={file}", f"references={tmp_path}/references.json", "metrics=[ROUGE-L,set-diversity]"]
    evaluate(monkeypatch, *options, "out=scores")
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    words = [[text.lower().replace(".", "").split() for text in texts] for texts in sets.values()]
    each = [len({word for text in texts for word in text}) / sum(map(len, texts)) for texts in words]
    assert scores["Div-1"] == pytest.approx(sum(each) / len(each)) and 0 <= scores["mBLEU-4"] < 1
    several = "the first, the best, of each is scored, except by set-diversity and mBLEU-4, which read all"
    assert any(several in note for note in scores["notes"])
    file.write_text(json.dumps(sets | {8: ["one"]}))
    assert "images without several candidates (1)" in mistake("eval", *options)
    assert "set-diversity needs several captions of each image: give captions=FILE with them" in mistake(
        "eval", f"ckpt={tmp_path}", "metrics=[set-diversity]"
    )


def test_entities_of_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "references.json").write_text(json.dumps({"1": ["a dog on a sofa"], "2": ["a dog"]}))
    (tmp_path / "captions.json").write_text(json.dumps({"1": "a dog", "2": "a cat"}))
    (tmp_path / "names.txt").write_text("dog\ncat\nsofa\n")
    files = [f"captions={tmp_path}/captions.json", f"references={tmp_path}/references.json"]
    evaluate(monkeypatch, *files, "metrics=entities", "vocabulary=names.txt", "out=scores")
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert (scores["entity precision"], scores["entity recall"]) == pytest.approx((1 / 2, 1 / 3))
    assert "entities needs the names to look for: give vocabulary=FILE" in mistake("eval", *files, "metrics=[entities]")
    unused = mistake("eval", *files, "metrics=[CIDEr]", f"vocabulary={tmp_path}/names.txt")
    assert "vocabulary= is for metrics=[entities]: leave it out, or name entities in metrics=" in unused
    assert "none.txt" in mistake("eval", *files, "metrics=[entities]", f"vocabulary={tmp_path}/none.txt")


def test_the_image_of_a_damaged_embedding_is_named(
    run_folder: Path, encoder: Encoder, tmp_path: Path, mistake: Callable[..., str]
) -> None:
    data = ["data=coco", f"data.store={make_store(tmp_path / 'damaged', encoder, wrong=8)}"]
    printed = mistake("eval", f"ckpt={run_folder / 'checkpoints' / 'best.ckpt'}", *data, "metrics=[CIDEr]")
    assert "embeddings: image 8 NaN or infinite" in printed


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("CLIPScore", "CLIPScore needs the images' embeddings: give ckpt=PATH, or captions=FILE with data="),
        ("perplexity", "perplexity needs a language model: name one with perplexity_lm=…, e.g. gpt2"),
    ],
)
def test_what_metrics_lack_is_said_in_options_before_a_file_is_read(
    metric: str, message: str, mistake: Callable[..., str]
) -> None:
    assert message in mistake("eval", "captions=absent.json", f"metrics=[CIDEr,{metric}]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["metrics=[CIDEr,METEO]"], "unknown metric 'METEO'"),
        (["metrics=[CLIPScore]"], "the demo encoder is gone"),
        (["metrics=[perplexity]", "perplexity_lm=/no/such/folder"], "cannot load language model '/no/such/folder'"),
    ],
)
def test_what_metrics_lack_is_told_before_captions_are_written(
    options: list[str], message: str, run_folder: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(captioner: Captioner) -> Encoder:
        from prefixcap.errors import InputError

        raise InputError("the demo encoder is gone")

    monkeypatch.setattr(Captioner, "encoder", gone)
    monkeypatch.setattr(Captioner, "caption", None)
    assert message in mistake("eval", f"ckpt={run_folder / 'checkpoints' / 'best.ckpt'}", *options)


def test_new_captions_are_those_that_the_captioner_did_not_learn_from(
    run_folder: Path,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The training captions of the evaluated store are all that is written; the captioner learned from another."""
    monkeypatch.setattr(Captioner, "caption", lambda self, images, *_, **options: ["a red star"] * len(images))
    data = ["data=coco", f"data.store={make_store(tmp_path / 'evaluated', encoder, 'A red star.')}", "out=scores"]
    checkpoint = [f"ckpt={run_folder / 'checkpoints' / 'best.ckpt'}", "metrics=[diversity]"]
    given = [{"image_id": image, "caption": "a red star"} for image in REFERENCES]
    (tmp_path / "captions.json").write_text(json.dumps(given))

    def novel(*options: str) -> tuple[float | None, str]:
        evaluate(monkeypatch, *options, *data)
        scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
        return scores["diversity"].get("Novel"), capsys.readouterr().out

    share, printed = novel(*checkpoint)
    assert share == 1 and "Novel:" not in printed
    share, printed = novel("captions=captions.json", "metrics=diversity")
    assert share == 0 and f"Novel: not in the split 'train' of {tmp_path / 'evaluated'}" in printed
    (tmp_path / "learned").rename(tmp_path / "moved")
    share, printed = novel(*checkpoint)
    assert share is None and f"Novel is missing: there is no feature store at {tmp_path / 'learned'}" in printed
