"""Fifty photographs of one kind: the captioner of photographs as it comes, adapted to them, and one from scratch.

The photographs are test photographs of Flickr8k, which the captioner of the package has not seen, of one kind: the word
is in at least three of a photograph's five captions. Forty are drawn at random to train on and ten to validate on, the
same for all seeds, which are those of the trainings; the others are captioned and scored. With --name, captions call
what was photographed by a name, as owners do: "A brown dog runs" becomes "Rex runs".

Makes the store, trains and evaluates by `prefixcap train` and `prefixcap eval`, and writes a table. What
is finished is not run again. Paths are relative to the working directory.

Rows:

"""

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefixcap.commands.common.steps import markdown, run_once, slug, train_once, write_csv
from prefixcap.encoders import load_encoder
from prefixcap.encoders.photo import load_heads
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import StoreWriter, join
from prefixcap.utils.files import atomic_write_text, read_json
from studies.photographs.language_model import write_small
from studies.photographs.rows import SMALL
from studies.photographs.scores import Value, difference, read_scores
from studies.photographs.stores import flickr8k_records, require, through, training_captions

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAIN, VAL = 40, 10
COLUMNS = ("BLEU-4", "CIDEr")


@dataclass(frozen=True)
class Row:
    """A captioner: how it is trained, nothing where it is used as it comes, and options of its evaluation."""

    label: str
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


def rows() -> dict[str, Row]:
    """All rows by name."""
    made = {"as-it-comes": Row("photos, as it comes")}
    for tuning, label, tried in (
        ("full", "all of it", (("1e-4", 50), ("3e-5", 200), ("3e-4", 200))),
        ("lora", "the mapper, and adapters", (("1e-3", 200),)),
        ("frozen", "the mapper", (("1e-3", 200),)),
    ):
        for rate, steps in tried:
            options = (f"model.lm_tuning={tuning}", f"optimizer.learning_rate={rate}", f"trainer.min_steps={steps}")
            name, what = f"{tuning}-{rate}-{steps}", f"photos, {label}: rate {rate}, {steps} steps"
            made[name] = Row(what, ("start=photos", *options))
    made["defaults"] = Row("photos, by default: all of it, rate 1e-4, 200 steps", ("start=photos",))
    for steps in (200, 1000):
        made[f"scratch-{steps}"] = Row(
            f"from scratch: rate 1e-3, {steps} steps",
            ("experiment=flickr8k_mlp", f"trainer.min_steps={steps}"),
            ("decode.rerank=5",),
        )
    return made


ROWS = rows()


def make_store(store: Path, data: Path, kind: str, name: str) -> None:
    """Photographs of a kind, as the encoder embeds them, and their captions, unless the store is complete."""
    folder = data / "flickr8k"
    encoder = load_encoder("photo")
    writer = StoreWriter(
        store, encoder.identity, f"photographs of: {kind}", folder / "test_images", kind + name, shards=1
    )
    if writer.finished():
        return
    records, word = list(flickr8k_records(folder)), re.compile(rf"\b(?:{kind})s?\b", re.IGNORECASE)
    named = [
        row
        for row, record in enumerate(records)
        if record.split == "test" and sum(word.search(caption) is not None for caption in record.captions) >= 3
    ]
    drawn = np.random.default_rng(0).permutation(named).tolist()
    split = {
        row: "train" if place < TRAIN else "val" if place < TRAIN + VAL else "test" for place, row in enumerate(drawn)
    }
    chosen = sorted(split, key=lambda row: (split[row], row))
    head, _ = load_heads()
    columns = {Feature.IMAGE.value: through(head, require(folder / "image_features.npy"), len(records))[chosen]}
    called = re.compile(rf"\b(?:an?|the|his|her|their)(?: \w+){{0,2}} (?:{kind})\b", re.IGNORECASE)
    captions = {
        row: tuple(called.sub(name or r"\g<0>", caption) for caption in records[row].captions) for row in chosen
    }
    drawn_records = [replace(records[row], split=split[row], captions=captions[row]) for row in chosen]
    writer.write_piece(0, 0, 1, drawn_records, columns, [])
    join(store)


def evaluated(name: str, seed: int, given: argparse.Namespace) -> Path:
    """Train and evaluate a row, unless that was done; return the folder of the evaluation."""
    row, photographs = ROWS[name], subject(given)
    store = Path("stores") / f"photographs-of-{photographs}"
    make_store(store, given.data, given.kind, given.name)
    place = f"{photographs}-{name}-{seed}"
    folder: Path = given.folder
    run, out = folder / "runs" / place, folder / "eval" / place
    data = ["data=folder", "data.root=.", f"data.store={store}", "data.default_encoder=photo"]
    if row.train:
        train_once(run, *row.train, *data, f"seed={seed}", *given.train)
    ckpt = run / "checkpoints" / "best.ckpt" if row.train else "photos"
    options = [f"ckpt={ckpt}", *data, "split=test", "metrics=[BLEU,CIDEr]", *row.evaluate, f"out={out}"]
    run_once(out, "eval", options, out / "metrics.json")
    return out


def share(name: str, folder: Path) -> float:
    """The share of an evaluation's captions that have the name in them."""
    captions = [entry["caption"] for entry in read_json(folder / "captions.json")]
    return sum(name in caption for caption in captions) / len(captions)


def subject(given: argparse.Namespace) -> str:
    """What the photographs show, as part of names of files."""
    return slug("-".join(filter(None, (given.kind, given.name))))


def main(arguments: list[str] | None = None) -> None:
    """Run the study. A mistake ends it with one line and status 2."""
    names = "\n".join(f"  {name:16} {row.label}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        "python -m studies.adapt",
        description=f"{__doc__}{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS), help="these rows alone")
    parser.add_argument("--kind", default="dog", help="a word, or several joined by | (default: %(default)s)")
    parser.add_argument("--name", default="", help="what captions call it (default: as they are)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/adapt"), help="of the runs and the table")
    parser.add_argument("--train", nargs="+", default=[], metavar="OPTION", help="further options of every training")
    given = parser.parse_args(arguments)
    try:
        if not SMALL.exists():
            write_small(SMALL, training_captions(given.data))
        said = [f"say {given.name}"] if given.name else []
        table = [["captioner", *COLUMNS, "different captions", *said, *(f"{c}: less as it comes, p" for c in COLUMNS)]]
        reference = [evaluated("as-it-comes", 0, given)]
        for name in given.only:
            seeds = given.seeds if ROWS[name].train else [0]
            folders = [evaluated(name, seed, given) for seed in seeds]
            scores = read_scores(tuple(folders))
            table.append(
                [ROWS[name].label, *(str(scores.values[column]) for column in COLUMNS), f"{scores.distinct:.0f}"]
            )
            if given.name:
                table[-1].append(f"{sum(share(given.name, folder) for folder in folders) / len(folders):.0%}")
            for column in COLUMNS:
                tested = difference(folders, reference, column)
                value, p = tested if tested else (Value(0, 0, 0), 1.0)
                table[-1].append(f"{value.score:+.3f} ± {(value.high - value.low) / 2:.3f}, {p:.3f}")
            print(f"\n{markdown(table)}", flush=True)
            atomic_write_text(given.folder / f"{subject(given)}.md", markdown(table))
            write_csv(given.folder / f"{subject(given)}.csv", table)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"written to {given.folder}/{subject(given)}.md and .csv")


if __name__ == "__main__":
    main()
