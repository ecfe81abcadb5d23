"""The papers of `papers.yaml`, and the same on the small world, in minutes, as a rehearsal."""

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from prefixcap.utils.files import read_text

TEXTS, IMAGES = "demo_other", "demo"  # the data sets of a rehearsal: sentences, and images with captions
MEMORY = f"stores/{TEXTS}-demo"
VOCABULARY = Path("data/rehearsal/things.txt")

# What takes the place of an option with the same name in a rehearsal; None: nothing does.
REHEARSED: dict[str, str | None] = {
    "encoder": "demo", "lm": None, "split": None, "features": None, "data.store": None, "data.reader.max_words": None,
    "memory": MEMORY, "datastore": MEMORY, "method.lm": None, "perplexity_lm": None, "decode.max_tokens": "20",
    "prompts.vocabulary": str(VOCABULARY), "+prompts.vocabulary": str(VOCABULARY), "+prompts.threshold": None,
    "+prompts.k": None, "trainer.max_epochs": None, "trainer.max_steps": None, "trainer.val_check_interval": None,
}  # fmt: skip
QUICK = "lm=demo encoder=demo optimizer.learning_rate=1e-3"
QUICK_LM = f"{QUICK} trainer.max_steps=100 trainer.val_check_interval=100"
QUICK_TRAIN = (
    f"{QUICK} optimizer.warmup_steps=20 +trainer.max_steps=100 +trainer.val_check_interval=100 trainer.max_epochs=-1 "
    "trainer.check_val_every_n_epoch=null"
)


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    Attributes:
        train: options of the training, after "train-lm" those of that command; rows with the same share a run. Empty:
            nothing is trained.
        evaluate: options of `eval`; RUN stands for the folder of the run.
        published: scores, from 0 to 1, CIDEr from 0 on.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    published: dict[str, float]

    def datasets(self) -> set[str]:
        """The data sets that it reads."""
        return {option.removeprefix("data=") for option in (*self.train, *self.evaluate) if option.startswith("data=")}


@dataclass(frozen=True)
class Paper:
    """How the tables of a paper are computed; the fields are those of `papers.yaml`."""

    title: str
    page: str
    models: str
    embed: tuple[tuple[str, ...], ...]
    rows: dict[str, Row] = field(default_factory=dict)
    compare: tuple[tuple[str, ...], ...] = ()
    files: tuple[str, ...] = ()
    rehearse: tuple[str, ...] = ()
    rehearse_store: tuple[str, ...] = ()

    def only(self, names: list[str]) -> "Paper":
        """The paper with these rows alone, and the stores that they need."""
        rows = {name: self.rows[name] for name in names}
        needed = {dataset for row in rows.values() for dataset in row.datasets()}
        return replace(self, rows=rows, embed=tuple(options for options in self.embed if dataset(options) in needed))


def dataset(options: tuple[str, ...]) -> str:
    """The data set that options name first, as data=NAME."""
    return next(option.removeprefix("data=") for option in options if option.startswith("data="))


def read_papers() -> tuple[dict[str, Paper], dict[str, list[str]]]:
    """All papers by name, and the files that each data set is read from."""
    content = yaml.safe_load(read_text(Path(__file__).with_name("papers.yaml")))
    papers = {}
    for name, paper in content["papers"].items():
        rows = {
            row: Row(_words(how.get("train", "")), _words(how["eval"]), how["published"])
            for row, how in paper.get("rows", {}).items()
        }
        papers[name] = Paper(
            paper["title"],
            paper["page"],
            paper["models"],
            embed=tuple(map(_words, paper["embed"])),
            rows=rows,
            compare=tuple(map(_words, paper.get("compare", ()))),
            files=tuple(paper.get("files", ())),
            rehearse=_words(paper.get("rehearse", "")),
            rehearse_store=_words(paper.get("rehearse_store", "")),
        )
    return papers, content["files"]


def rehearsal(paper: Paper) -> Paper:
    """The paper's steps on the small world: its models, 100 steps of training; rows that become alike are one."""
    rows: dict[str, Row] = {}
    store = [option for option in paper.rehearse_store if option.startswith("data.store=")]
    for name, row in paper.rows.items():
        lm = row.train[:1] == ("train-lm",)
        train = (*_rehearsed(row.train), *_words(QUICK_LM if lm else QUICK_TRAIN), *paper.rehearse, *store)
        method = any(option.startswith("method=") for option in row.evaluate)
        evaluate = (*_rehearsed(row.evaluate), *(("method.lm=RUN/language_model",) if lm else ()), "split=val")
        evaluate = (*evaluate, *(("limit=8",) if method else ()), *store)
        if not any((train, evaluate) == (other.train, other.evaluate) for other in rows.values()):
            rows[name] = Row(train if row.train else (), evaluate, {})
    embed = [(f"data={IMAGES}", *paper.rehearse_store), (f"data={TEXTS}",)]
    systems = [word for options in paper.compare for word in _systems(options)]
    compare = ("--source", TEXTS, "--target", IMAGES, *(("--systems", *dict.fromkeys(systems)) if systems else ()))
    trained = [option for option in _words(QUICK_TRAIN) if not option.startswith(("lm=", "encoder="))]
    compare = (*compare, "--train", *trained, *paper.rehearse, "--evaluate", "split=val", "metrics=[BLEU,CIDEr]")
    return replace(
        paper, embed=tuple(embed), rows=rows, compare=(compare,) if paper.compare else (), files=(), models="none"
    )


def _words(line: str) -> tuple[str, ...]:
    return tuple(shlex.split(line))


def _rehearsed(options: tuple[str, ...]) -> tuple[str, ...]:
    made = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "data":
            made.append(f"data={TEXTS if value.endswith('_text') else IMAGES}")
        elif name == "metrics":
            made.append("metrics=[BLEU,CIDEr]")
        elif name not in REHEARSED:
            made.append(option)
        elif (instead := REHEARSED[name]) is not None:
            made.append(f"{name}={instead}")
    return tuple(made)


def _systems(options: tuple[str, ...]) -> tuple[str, ...]:
    return options[options.index("--systems") + 1 :] if "--systems" in options else ()
