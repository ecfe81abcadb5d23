"""Words that training never said: captioners with prompts of images on the small world, and without.

In the small world's out-of-domain scenes, colour or shape is one that no training caption names; the near-domain ones
pair a colour and a shape that no training caption pairs. The rows differ in what is read beside the image's prefix.
Where captions are retrieved, the same checkpoint is evaluated twice: with the training captions as its datastore, and
with 7,500 captions of other scenes of all domains, of which no image is in any split.

Makes the stores, trains and evaluates each row by `prefixcap train` and `prefixcap eval`, and writes table.md and
table.csv after each, and differences.md at the end: of each row less the one without anything, of each datastore less
the training captions, and of prompts before the prefix less those after it. What is finished is not run again; a
training that was stopped continues. Paths are relative to the working directory.

Rows:

"""

import argparse
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from prefixcap.commands.common.steps import call, markdown, run_once, train_once, write_csv
from prefixcap.demo.scenes import COLOURS, DOMAINS, SHAPES, captions, is_right, random_scene
from prefixcap.demo.world import read_scenes
from prefixcap.errors import InputError
from prefixcap.metrics import METRICS, mean_of
from prefixcap.metrics.metric import Score, Statistics, mean
from prefixcap.metrics.pairwise import compare_systems
from prefixcap.utils.files import atomic_write_text, read_json

WORLD = Path("data/demo")
TRAINING, OTHERS = Path("stores/demo-captions"), Path("stores/other-scenes")
PAIRS, WORDS, SENTENCES = Path("pairs.txt"), Path("words.txt"), Path("other_scenes.txt")
SCENES = 1500  # of the other datastore, with five captions each
SAMPLES = 1000  # of the bootstrap, over images and seeds
SCORES: dict[str, Score] = {"CIDEr": METRICS["CIDEr"].score, "right": mean}
COLUMNS = [f"{name}, {domain}" for name in SCORES for domain in DOMAINS]
HEAD = ["read beside the prefix", "datastore", *COLUMNS]

Runs = dict[str, list[Statistics]]  # by column of the table, one array a seed


@dataclass(frozen=True)
class Row:
    """What a captioner reads beside the prefix.

    Attributes:
        label: in the table.
        train: options of the training; rows with the same ones share their runs.
        datastore: of the evaluation; None: nothing is retrieved.
    """

    label: str
    train: tuple[str, ...] = ()
    datastore: Path | None = None


def by_clip(top_k: int, threshold: float) -> Row:
    options = (f"prompts.vocabulary={PAIRS}", f"prompts.top_k={top_k}", f"prompts.threshold={threshold}")
    return Row(f"entities by CLIP, at most {top_k}, threshold {threshold}", ("prompts=clip_entities", *options))


def with_adapters(row: Row) -> Row:
    """The same with a language model that learns, too: the small world's is frozen otherwise."""
    return replace(row, label=f"{row.label}; adapters", train=(*row.train, "model.lm_tuning=lora"))


def after(row: Row) -> Row:
    """The same, with prompts that are read after the prefix."""
    return replace(row, label=f"{row.label}; after the prefix", train=(*row.train, "prompts.first=false"))


def from_text(row: Row, variance: float) -> Row:
    """The same, learned from captions alone, each in place of its image, with noise."""
    options = ("model.learns_from=text", "model.normalize_embeddings=true", f"model.noise={{variance: {variance}}}")
    label = f"{row.label}; from captions alone, noise of variance {variance}"
    return replace(row, label=label, train=(*row.train, *options))


def masked(row: Row, share: float) -> Row:
    """The same, with another share of a caption's entities left out in training."""
    return replace(row, label=f"{row.label}, {share:.0%} left out", train=(*row.train, f"prompts.masked={share}"))


def retrieved(label: str, *options: str) -> dict[str, Row]:
    """Rows with both datastores."""
    return {
        "training": Row(label, options, TRAINING),
        "others": Row(label, options, OTHERS),
    }


def rows() -> dict[str, Row]:
    """All rows by name."""
    made = {"none": Row("nothing"), "none-lora": with_adapters(Row("nothing"))}
    made |= {"clip": by_clip(1, 0.0), "clip-after": after(by_clip(1, 0.0)), "clip-lora": with_adapters(by_clip(1, 0.0))}
    made |= {"clip-3": by_clip(3, 0.0), "clip-0.5": by_clip(3, 0.5)}
    for name, variance in (("text", 0.016), ("text-0.001", 0.001)):  # as published; and less, learned sooner
        made[name] = from_text(Row("nothing"), variance)
        for share in (0.0, 0.4, 0.8):
            made[f"{name}-masked-{share}"] = masked(from_text(by_clip(1, 0.0), variance), share)
    for k, least in ((9, 4), (20, 8)):
        options = (
            "prompts=retrieved_entities",
            f"prompts.vocabulary={WORDS}",
            f"prompts.k={k}",
            f"prompts.least={least}",
        )
        pair = retrieved(f"entities in at least {least} of {k} captions", *options)
        made |= {f"entities-{k}-{name}": row for name, row in pair.items()}
    made |= {f"entities-9-after-{name}": after(made[f"entities-9-{name}"]) for name in ("training", "others")}
    for k in (1, 3):  # the small world's language model has no room for more
        pair = retrieved(f"captions: {k}", "prompts=retrieved_captions", f"prompts.k={k}")
        made |= {f"captions-{k}-{name}": row for name, row in pair.items()}
    return made


ROWS = rows()


def make_inputs() -> None:
    """Make vocabularies and stores, unless they are there."""
    atomic_write_text(PAIRS, "".join(f"{colour} {shape}\n" for colour in COLOURS for shape in SHAPES))
    atomic_write_text(WORDS, "".join(f"{word}\n" for word in (*COLOURS, *SHAPES)))
    if not TRAINING.exists():
        call("embed", "data=demo", "features=[image,caption]", f"data.store={TRAINING}")
    if not OTHERS.exists():
        generator = np.random.default_rng(1)
        scenes = [random_scene(generator) for _ in range(SCENES)]
        atomic_write_text(SENTENCES, "".join(f"{text}\n" for scene in scenes for text in captions(scene, generator)))
        call("embed", "data=text", f"data.files={SENTENCES}", "encoder=demo", f"data.store={OTHERS}")


def evaluated(name: str, seed: int, folder: Path, train: list[str]) -> Path:
    """Train and evaluate a row, unless that was done; return the folder of the evaluation."""
    row = ROWS[name]
    first = next(other for other, each in ROWS.items() if each.train == row.train)
    run, out = folder / "runs" / f"{first}-{seed}", folder / "eval" / f"{name}-{seed}"
    train_once(run, *row.train, f"data.store={TRAINING}", f"seed={seed}", *train)
    options = [f"ckpt={run / 'checkpoints' / 'best.ckpt'}", "metrics=[CIDEr]", "decode.max_tokens=30", f"out={out}"]
    options += ["data=demo", f"data.store={TRAINING}"]  # those that learn from captions name no images
    options += [f"datastore={row.datastore}"] if row.datastore else []
    run_once(out, "eval", options, out / "metrics.json")
    return out


def right(folder: Path) -> tuple[list[str], Statistics]:
    """Of an evaluation, the domain of each image, and (n, 2) statistics of whether its caption is right."""
    scenes = read_scenes(WORLD)
    captioned = [(scenes[entry["image_id"]], entry["caption"]) for entry in read_json(folder / "captions.json")]
    values = [float(is_right(caption, scene)) for scene, caption in captioned]
    return [scene.domain for scene, _ in captioned], mean_of(values)


def interval(score: Score, runs: list[Statistics]) -> tuple[float, float]:
    """The mean over seeds, and half of its 95% confidence interval by bootstrap over images and seeds."""
    low, high = compare_systems(score, [runs], samples=SAMPLES).intervals[0, 0].tolist()
    return float(np.mean([score(run.sum(0))[0] for run in runs])), (high - low) / 2


def statistics(folders: list[Path]) -> Runs:
    """Of evaluations, one for each seed, the statistics of CIDEr and of right captions in each domain."""
    domains, _ = right(folders[0])
    runs: Runs = {column: [] for column in COLUMNS}
    for folder in folders:
        with np.load(folder / "statistics.npz", allow_pickle=False) as arrays:
            by_name = {"CIDEr": np.array(arrays["CIDEr"]), "right": right(folder)[1]}
        for name, domain in product(SCORES, DOMAINS):
            members = [row for row, own in enumerate(domains) if own == domain]
            runs[f"{name}, {domain}"].append(by_name[name][members])
    return runs


def cells(runs: Runs) -> list[tuple[float, float]]:
    """CIDEr and the share of right captions in each domain, each with half of its interval."""
    return [interval(SCORES[column.partition(",")[0]], runs[column]) for column in COLUMNS]


def differences(runs: Runs, others: Runs) -> list[str]:
    """The same, less those of others: difference, half of its interval, and its p-value, by paired bootstrap."""
    made = []
    for column in COLUMNS:
        test = compare_systems(SCORES[column.partition(",")[0]], [runs[column], others[column]], samples=SAMPLES)
        low, high = test.difference_interval[0, 0]
        made.append(f"{test.difference[0, 0]:+.3f} ± {(high - low) / 2:.3f} (p = {test.p_value[0, 0]:.3f})")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run the study. A mistake ends it with one line and status 2."""
    names = "\n".join(
        f"  {name:26} {row.label}{f', from {row.datastore}' if row.datastore else ''}" for name, row in ROWS.items()
    )
    parser = argparse.ArgumentParser(
        "python -m studies.prompts",
        description=f"{__doc__}{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS), help="these rows alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings (default: 0 1 2)")
    parser.add_argument("--folder", type=Path, default=Path("runs/prompts"), help="of the runs and the table")
    parser.add_argument("--train", nargs="+", default=[], metavar="OPTION", help="further options of every training")
    given = parser.parse_args(arguments)
    try:
        make_inputs()
        measured: dict[str, Runs] = {}
        table, exact = [HEAD], [[*HEAD[:2], *(f"{name}{part}" for name in HEAD[2:] for part in ("", " ±"))]]
        for name in given.only:
            row = ROWS[name]
            measured[name] = statistics([evaluated(name, seed, given.folder, given.train) for seed in given.seeds])
            values = cells(measured[name])
            head = [row.label, row.datastore.name if row.datastore else "-"]
            table.append([*head, *(f"{score:.3f} ± {half:.3f}" for score, half in values)])
            exact.append([*head, *(str(round(number, 6)) for value in values for number in value)])
            print(f"\n{markdown(table)}", flush=True)
            atomic_write_text(given.folder / "table.md", markdown(table))
            write_csv(given.folder / "table.csv", exact)
        pairs = [(name, "none") for name in measured if name != "none"]
        pairs += [(name, f"{name.removesuffix('others')}training") for name in measured if name.endswith("others")]
        pairs += [(name.replace("-after", ""), name) for name in measured if "-after" in name]
        lines = [[*pair, *differences(*map(measured.__getitem__, pair))] for pair in pairs if {*pair} <= {*measured}]
        atomic_write_text(given.folder / "differences.md", markdown([["row", "less", *COLUMNS], *lines]))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"written to {given.folder}/table.md, table.csv and differences.md")


if __name__ == "__main__":
    main()
