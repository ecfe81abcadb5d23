"""The command line: a mistake ends in one line that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data_prep.embed", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["batchsize=3"], "error: there is no option 'batchsize'; add `--cfg job` to see those there are"),
        (["data=nope"], "error: there is no data=nope; choose one of "),
        (["data=folder"], "error: data.root must be given: add data.root=VALUE"),
        (["data=folder", "data.root=."], "error: cannot read captions.csv: No such file or directory"),
    ],
)
def test_one_line(options: list[str], message: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
