"""`prefixcap correlate`: what it reads, prints and writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Command
from tests.evaluation.test_composite import REFERENCES, write_composite
from tests.evaluation.test_judgements import CAPTIONS, CROWD, EXPERT, write_pascal50s, write_rows

METRICS = ("--metrics", "ROUGE-L", "CIDEr")
KAGGLE = "image,caption\n" + "".join(f'{image},"{text}"\n' for image, texts in CAPTIONS.items() for text in texts)
TOKENS = "".join(f"{image}#{n}\t{text}\n" for image, texts in CAPTIONS.items() for n, text in enumerate(texts))
SENTENCES = {image: [{"raw": text} for text in texts] for image, texts in CAPTIONS.items()}
KARPATHY = [{"filename": image, "split": "test", "sentences": texts} for image, texts in SENTENCES.items()]
FORMS = {
    "captions.json": json.dumps(CAPTIONS),
    "lists.json": json.dumps({"train": {"a.jpg": CAPTIONS["a.jpg"]}, "test": dict(list(CAPTIONS.items())[1:])}),
    "captions.txt": KAGGLE,
    "Flickr8k.token.txt": TOKENS,
    "dataset_flickr8k.json": json.dumps({"images": KARPATHY}),
}


def test_tables_and_json(command: Command, tmp_path: Path) -> None:
    files = [
        write_rows(tmp_path / name, rows) for name, rows in (("Expert.txt", [*EXPERT, EXPERT[0]]), ("CF.txt", CROWD))
    ]
    (tmp_path / "captions.json").write_text(FORMS["captions.json"])
    folder = write_pascal50s(tmp_path / "pascal")
    out = tmp_path / "deep" / "agreement.json"
    status, printed, err = command("correlate", *files, folder, *METRICS, "--out", out)
    assert (status, err) == (0, "")
    assert [line for line in printed.splitlines() if ": " in line and "judgements" in line] == [
        "Flickr8k-Expert: 3 captions of 2 images, 9 judgements",
        "Flickr8k-CF: 5 captions of 3 images, 5 judgements",
        "Pascal-50S: 3 pairs of captions of 2 images, 9 judgements",
    ]
    assert printed.endswith(f"written to {out}\n") and "published" not in printed
    expert, crowd, pascal = json.loads(out.read_text())
    assert expert["file"] == str(files[0]) and set(crowd["agreement"]) == {"tau-b", "tau-c"}
    assert set(crowd["agreement"]["tau-b"]) == {"ROUGE-L", "CIDEr"}
    assert set(pascal["agreement"]) == {"HC", "HI", "HM", "mean"}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_the_captions(name: str, command: Command, tmp_path: Path) -> None:
    """Beside the judgements, or named."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text(FORMS[name])
    file = write_rows(tmp_path / "other" / "CrowdFlowerAnnotations.txt", CROWD)
    printed = [command("correlate", file, "--captions", path, *METRICS) for path in (tmp_path / "other" / name,)]
    if name != "lists.json":
        printed.append(command("correlate", file, *METRICS))
    assert all(result.status == 0 and "Flickr8k-CF: 5 captions of 3 images" in result.out for result in printed)
    assert len({result.out for result in printed}) == 1


def test_composite_takes_captions_of_three_data_sets(
    command: Command, mistaken: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_composite(tmp_path / "AMT_eval")
    tokens = "".join(f"1_ab.jpg#{n}\t{text}\n" for n, text in enumerate(REFERENCES["1_ab.jpg"]))
    (tmp_path / "Flickr8k.token.txt").write_text(tokens)
    sentences = [{"raw": text} for text in REFERENCES["22.jpg"]]
    karpathy = {"images": [{"filename": "22.jpg", "split": "test", "sentences": sentences}]}
    annotations = {"annotations": [{"image_id": 391895, "caption": text} for text in REFERENCES[391895]]}
    for name, content in (("dataset_flickr30k.json", karpathy), ("captions_val2014.json", annotations)):
        (tmp_path / name).write_text(json.dumps(content))
    files = [tmp_path / name for name in ("Flickr8k.token.txt", "dataset_flickr30k.json", "captions_val2014.json")]
    status, printed, err = command("correlate", folder, "--captions", *files, "--metrics", "ROUGE-L", "CIDEr")
    assert (status, err) == (0, "")
    assert "Composite: 8 captions of 3 images, 8 judgements" in printed
    assert "give the references of all by --captions" in mistaken("correlate", folder)


def test_mistakes(mistaken: Callable[..., str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.txt", CROWD)
    assert "there is no file" in mistaken("correlate", tmp_path / "none.txt")
    assert "no captions of Flickr8k in" in mistaken("correlate", rows)
    assert "give --captions" in mistaken("correlate", rows, "--captions", tmp_path / "none.json")
    assert "there is no pair_pascal.mat" in mistaken("correlate", tmp_path)
    assert "unknown metric 'BLUE'" in mistaken("correlate", rows, "--metrics", "BLUE")
    for metric in ("CLIPScore", "PAC-S", "BERTScore", "set-diversity"):
        message = mistaken("correlate", rows, "--metrics", metric)
        assert f"{metric} needs more than captions and references" in message
    (tmp_path / "captions.json").write_text("[1]")
    assert "holds no lists of captions" in mistaken("correlate", rows)
    # A caption that cannot be used would give the next ones other numbers.
    tokens = tmp_path / "Flickr8k.token.txt"
    tokens.write_text(TOKENS.replace("a wet dog", "nan"))
    assert "there is no caption 'a.jpg#1'" in mistaken("correlate", rows, "--captions", tokens)
