"""The study of photographs, on a slice of made-up features: it runs, resumes, and says what `eval` says."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from prefixcap.commands import main as prefixcap
from prefixcap.encoders import embed_images, load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.language import load_language_model
from prefixcap.metrics import METRICS
from prefixcap.metrics.significance import paired_test
from prefixcap.store import FeatureStore
from studies.photographs.__main__ import main
from studies.photographs.language_model import require_packages, write_small
from studies.photographs.rows import FLICKR8K, PAIRS, ROWS
from studies.photographs.scores import difference, read_scores
from studies.photographs.stores import as_sentence, flickr30k_records, make_flickr8k
from tests.test_conf import composed

WHO, WHAT, WHERE = ("black dog", "boy", "brown horse"), ("runs", "jumps", "sleeps"), ("beach", "snow", "grass")
SIZES = {"train": 12, "val": 4, "test": 4}


def sentences(generator: np.random.Generator, number: int) -> list[str]:
    return [
        f"A {generator.choice(WHO)} {generator.choice(WHAT)} on the {generator.choice(WHERE)} ." for _ in range(number)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The shared data in small: twenty images with random features, and forty of COCO's without."""
    generator, folder = np.random.default_rng(0), tmp_path / "data"
    flickr8k, captions = folder / "flickr8k", folder / "captions"
    flickr8k.mkdir(parents=True)
    captions.mkdir()
    splits = {
        split: {f"{split}{number}.jpg": sentences(generator, 5) for number in range(size)}
        for split, size in SIZES.items()
    }
    (flickr8k / "captions.json").write_text(json.dumps(splits))
    np.save(flickr8k / "image_features.npy", generator.random((20, 1280)).astype(np.float16))
    np.save(flickr8k / "caption_features.npy", generator.normal(size=(100, 384)).astype(np.float16))
    for split in ("val", "test"):
        entries = [{"captions": sentences(generator, 5)} for _ in range(20)]
        (captions / f"coco_karpathy_{split}.json").write_text(json.dumps(entries))
        named = [entry | {"image_name": f"{split}{number}.jpg"} for number, entry in enumerate(entries)]
        (captions / f"flickr30k_{split}.json").write_text(json.dumps(named))
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the study runs, here in this process."""
    run: list[list[str]] = []

    def call(command: list[str]) -> object:
        assert command[1:3] == ["-m", "prefixcap"]
        run.append(command[3:])
        prefixcap(arguments=command[3:])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", call)
    return run


def test_a_datastore_has_no_captions_of_photographs_that_are_evaluated(data: Path) -> None:
    """Flickr30k has photographs of Flickr8k, too; a name of the latter begins with the number of the photograph."""
    records = flickr30k_records(data)
    entries = [json.loads((data / "captions" / f"flickr30k_{split}.json").read_text()) for split in ("val", "test")]
    # The first four of each are named as photographs of the splits for validation and test are.
    assert [record.captions for record in records] == [
        tuple(map(as_sentence, entry["captions"])) for part in entries for entry in part[4:]
    ]


def test_the_table_says_what_the_evaluations_say(
    data: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over 20 s on a busy machine: it opens both networks of the encoder, trains, and evaluates four times."""
    monkeypatch.chdir(data.parent)
    few = ["trainer.max_epochs=1", "lm.scratch={n_layer: 1}", "val_max_tokens=8", "+trainer.enable_progress_bar=false"]
    options = ["--only", "clipre", "baseline", "decap", "decap-0.04", "--seeds", "1", "--data", str(data)]
    options += ["--metrics", "BLEU", "CIDEr"]
    options += ["--pairs", "--sentences", "decap", "--train", *few, "--evaluate", "decode.max_tokens=8"]
    main(options)
    printed = capsys.readouterr().out
    assert [command[0] for command in calls] == [
        "eval",
        "train",
        "eval",
        "eval",
        "eval",
    ]  # DeCap has the Baseline's run
    table = list(csv.DictReader(Path("runs/photographs/table.csv").read_text().splitlines()))
    rows = {row["captioner"]: row for row in table}
    assert next(iter(rows)) == "people" and float(rows["Karpathy and Fei-Fei 2015"]["CIDEr"]) == 0.318
    for name in ("clipre-0", "baseline-1", "decap-1"):
        folder = Path("runs/photographs/eval") / name
        metrics, row = json.loads((folder / "metrics.json").read_text()), rows[ROWS[name[:-2]].label]
        for score in ("BLEU-4", "CIDEr"):
            assert float(row[score]) == pytest.approx(metrics[score], abs=1e-6)
            interval = [float(row[f"{score} low"]), float(row[f"{score} high"])]
            assert interval == pytest.approx(metrics["intervals"][score], abs=1e-6)
            assert float(rows["people"][score]) == pytest.approx(metrics["humans"][score], abs=1e-6)
        captions = json.loads((folder / "captions.json").read_text())
        assert float(row["distinct"]) == len({entry["caption"] for entry in captions})
        texts = load_encoder("photo").encode_texts([entry["caption"] for entry in captions]).double().numpy()
        images = FeatureStore(FLICKR8K).split("test").embeddings[:].astype(float)
        cosines = (texts * images).sum(1) / np.linalg.norm(texts, axis=1) / np.linalg.norm(images, axis=1)
        assert float(row["similarity"]) == pytest.approx(cosines.mean(), abs=1e-4)
        assert row["METEOR"] == row["SPICE"] == "" and float(row["captioning seconds"]) > 0
    assert rows[ROWS["decap"].label]["training seconds"] == rows[ROWS["baseline"].label]["training seconds"] != ""
    tests = list(csv.DictReader(Path("runs/photographs/pairs.csv").read_text().splitlines()))
    assert {(row["first"], row["second"]) for row in tests} == {("decap", "baseline")}

    sentences = Path("runs/photographs/sentences.md").read_text().splitlines()[2:]
    captions = json.loads(Path("runs/photographs/eval/decap-1/captions.json").read_text())
    people = FeatureStore(FLICKR8K).split("test").references()
    expected = {entry["image_id"]: [entry["caption"], people[entry["image_id"]][0]] for entry in captions}
    assert {file: said for file, *said in ([*map(str.strip, row.split("|")[1:4])] for row in sentences)} == expected
    on_val = json.loads(Path("runs/photographs/eval/decap-0.04-1/captions.json").read_text())
    assert {entry["image_id"] for entry in on_val} == {f"val{number}.jpg" for number in range(SIZES["val"])}

    main(options)
    assert len(calls) == 5
    assert capsys.readouterr().out.splitlines()[-15:] == printed.splitlines()[-15:]
    with pytest.raises(SystemExit):
        main([*options[:-1], "decode.max_tokens=9"])
    assert "holds a study with the options" in capsys.readouterr().err


def test_scores_are_the_mean_of_seeds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    references = {number: sentences(generator, 5) for number in range(12)}
    folders, evaluations = [], []
    for seed in range(4):
        captions = {number: sentences(generator, 1)[0] for number in references}
        evaluations.append(evaluate(captions, references, ["BLEU", "CIDEr"]))
        folders.append(tmp_path / str(seed))
        evaluations[-1].write(folders[-1], "test")
    scores, single = read_scores((*folders[:2],)), read_scores((folders[0],))
    for name in ("BLEU-4", "CIDEr"):
        corpus = [evaluation.scores.corpus[name] for evaluation in evaluations]
        assert scores.values[name].score == pytest.approx(np.mean(corpus[:2]))
        assert scores.seeds[name] == pytest.approx(corpus[:2])
        bounds = (single.values[name].low, single.values[name].high)
        assert bounds == pytest.approx(evaluations[0].intervals[name])
        tested = difference(folders[:2], folders[2:], name)
        assert tested is not None and tested[0].score == pytest.approx(np.mean(corpus[:2]) - np.mean(corpus[2:]))
    one, other = (evaluation.scores.statistics["CIDEr"] for evaluation in evaluations[:2])
    tested = difference(folders[:1], folders[1:2], "CIDEr")
    assert tested is not None and difference(folders[:1], folders[1:2], "METEOR") is None
    value, p_value = tested
    expected = paired_test(METRICS["CIDEr"].score, one, other)
    assert (value.low, value.high) == pytest.approx(tuple(expected.interval[0]))
    assert p_value == pytest.approx(expected.p_value[0])
    assert set(scores.values) == {"BLEU-4", "CIDEr"}


def test_rows_can_be_composed_and_name_each_other() -> None:
    for name, row in ROWS.items():
        if row.train and row.start is None:
            command = "train" if row.command == "train" else "train_lm"
            config = composed(command, *row.train)
            assert Path(config.lm.name) in row.needs and config.encoder.name == "photo", name
            assert command == "train_lm" or config.model.noise is None or config.model.normalize_embeddings, name
        assert all(other is None or other in ROWS for other in (row.start, row.same_as, row.images_of)), name
        assert composed("eval", "data=flickr8k", *row.evaluate) is not None
    assert {name for pair in PAIRS for name in pair} <= set(ROWS)


def test_the_store_has_the_embeddings_of_the_encoder(shared: Path, tmp_path: Path) -> None:
    """Those that the encoder computes from photographs and captions themselves, as they were before they became
    sentences."""
    encoder = load_encoder("photo")
    make_flickr8k(tmp_path / "store", shared / "flickr8k", encoder)
    split = FeatureStore(tmp_path / "store").split("test")
    files = [file for file in split.files[:8] if file is not None]
    captions = [
        text
        for texts in json.loads((shared / "flickr8k" / "captions.json").read_text())["test"].values()
        for text in texts
    ]
    images, texts = embed_images(encoder, files), encoder.encode_texts(captions[:40])
    for expected, stored in (
        (images.numpy(), split.embeddings[:8]),
        (texts.numpy(), split.feature("captions/embedding")[:40]),
    ):
        stored = stored.astype(np.float32)
        cosines = (expected * stored).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(stored, axis=1)
        assert len(expected) == len(stored) and cosines.min() > 0.9999


def test_features_of_other_captions_are_refused(data: Path) -> None:
    np.save(data / "flickr8k" / "image_features.npy", np.zeros((19, 1280), np.float16))
    with pytest.raises(InputError, match="has 19 rows for 20"):
        make_flickr8k(data / "store", data / "flickr8k", load_encoder("photo"))
    (data / "flickr8k" / "captions.json").unlink()
    with pytest.raises(InputError, match=r"captions\.json: name the folder of the shared data with --data"):
        make_flickr8k(data / "other", data / "flickr8k", load_encoder("photo"))


def test_the_small_language_model_spells_captions_of_any_bytes(tmp_path: Path) -> None:
    captions = sentences(np.random.default_rng(0), 50)
    write_small(tmp_path / "small", captions, layers=1, width=64)
    lm = load_language_model(str(tmp_path / "small"), "full", scratch={"resid_pdrop": 0.3})
    assert lm.dim == 64 and lm.model.config.resid_pdrop == 0.3
    for caption in (captions[0], "Zoë, 犬"):
        assert lm.tokenizer.decode(lm.tokenizer(caption).input_ids) == caption
    assert len(lm.tokenizer(captions[0]).input_ids) == len(captions[0].split())


def test_missing_packages_are_named_with_the_command_that_installs_them() -> None:
    with pytest.raises(InputError, match="no-such-package is not installed: pip install --no-deps numpy no-such"):
        require_packages(["numpy", "no-such-package"])
