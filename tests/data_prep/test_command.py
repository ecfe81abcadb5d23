"""The command line of the offline step: a mistake ends in one line that says what to do."""

import sys
from collections.abc import Callable

import pytest

from tests.conftest import run_script


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["batchsize=3"], "error: there is no option 'batchsize'; did you mean batch_size?"),
        (["data=nope"], "error: there is no data=nope; choose one of "),
        (["data=folder"], "error: data.root must be given: add data.root=VALUE"),
        (["data=folder", "data.root=."], "error: cannot read captions.csv: No such file or directory"),
        (["data=custom", "data.root=."], "error: data.reader.name must be given: add data.reader.name=VALUE"),
        (["data=folder", "data.root=.", "data.reader.name=zip"], "error: unknown reader 'zip': choose one of coco, "),
        (["data=folder", "data.root=.", "data.reader.seeds=1"], "error: there is no option 'data.reader.seeds'; did "),
        (["data=coco", "data.root=.", "data.reader.test_share=a"], "error: reader 'coco': test_share must be a finite"),
    ],
)
def test_one_line(options: list[str], message: str, mistake: Callable[..., str]) -> None:
    assert mistake("data_prep.embed", *options).startswith(message)


def test_the_old_name_of_an_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["embed", "jpeg_scaling=true", "data=folder", "data.root=."])
    with pytest.raises(SystemExit):
        run_script("data_prep.embed")
    assert capsys.readouterr().err.startswith("jpeg_scaling= is called fast_decode= now; the old name goes in 0.4\n")
