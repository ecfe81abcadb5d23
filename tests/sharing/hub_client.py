"""A process that uses a hub: huggingface_hub reads its variables when it is imported.

It evaluates expressions, one a line of its standard input as `[token, expression]`, and answers each with a line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


class Client:
    """Such a process.

    Args:
        variables: of its environment.
    """

    def __init__(self, **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}
        command = [sys.executable, "-m", "tests.sharing.hub_client"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __call__(self, expression: str, token: str | None = None) -> Any:
        """What an expression is there, in JSON's types; an InputError as the text of it, behind "refused: "."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([token, expression]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def refused(self, expression: str, token: str | None = None) -> str:
        """The one line that an expression is refused with."""
        answer = self(expression, token)
        assert isinstance(answer, str) and answer.startswith("refused: ") and "\n" not in answer, answer
        return answer.removeprefix("refused: ")


@contextmanager
def client(**variables: str) -> Iterator[Client]:
    started = Client(**variables)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def command(*words: str) -> str:
    """What `prefixcap WORDS` prints."""
    import contextlib
    import io

    from prefixcap.commands import main

    sys.argv = ["prefixcap", *words]
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as ended:
            assert not ended.code or errors.getvalue().startswith("error: "), errors.getvalue()
            return printed.getvalue() + errors.getvalue()
    return printed.getvalue()


def _answer() -> None:
    import huggingface_hub.constants
    import torch

    import prefixcap
    from prefixcap.encoders import load_encoder
    from prefixcap.language import load_language_model
    from prefixcap.metrics.text_encoder import load_text_encoder

    torch.set_num_threads(1)
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1000  # so that small files have many chunks
    names = {
        "Captioner": prefixcap.Captioner, "command": command, "load": prefixcap.load, "load_encoder": load_encoder,
        "load_language_model": load_language_model, "load_text_encoder": load_text_encoder, "Path": Path,
        "torch": torch,
    }  # fmt: skip
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        token, expression = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update({} if token is None else {"HF_TOKEN": token})
        try:
            answer = eval(expression, dict(names))
        except prefixcap.InputError as error:
            answer = f"refused: {error}"
        except Exception as error:  # any other is a mistake of ours, which the test is to show
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer, default=repr), file=answers, flush=True)


if __name__ == "__main__":
    _answer()
