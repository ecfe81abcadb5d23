"""Processes that start with everything imported and nothing run, and that see no GPU.

Importing torch, Lightning and transformers anew takes ten times as long as most tests. A server imports them once, and
each process is forked from it. It is not forked from the process of the tests: what has run there before (threads of
autograd or of OpenMP, a GPU) would not work in a fork.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parent.parent

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([
    "tests.data_prep.test_kill", "tests.metrics.test_ranks", "tests.training.test_distributed",
    "tests.training.test_reliability", "prefixcap.commands.train", "prefixcap.commands.eval",
    "prefixcap.commands.caption", "prefixcap.web.page", "prefixcap.web.server",
    "clip", "peft", "matplotlib.pyplot",  # imported only where they are used
    "tests.preloaded",
])  # fmt: skip


def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run a function, which has a name in its module, in a process of its own, with the environment of this one."""
    return _start(dict(os.environ), function, *arguments)


def _start(environment: dict[str, str], function: Callable[..., None], *arguments: object) -> BaseProcess:
    process = _SERVER.Process(target=_run, args=(environment, function, *arguments))
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT)):  # the first starts the server
        process.start()
    return process


def _run(environment: dict[str, str], function: Callable[..., None], *arguments: object) -> None:
    os.environ.clear()  # it is that of the test that started the server
    os.environ.update(environment, CUDA_VISIBLE_DEVICES="")
    multiprocessing.set_start_method("fork", force=True)  # of what it starts itself, as if it had been started alone
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported is no garbage
    function(*arguments)


class Python:
    """`python WORDS` in such a process, with the part of `subprocess.Popen` that the tests use.

    Args:
        words: a script, `-m` and a module, or `-c` and code; then its arguments.
        cwd: its working directory.
        environment: its environment variables, those of this process where None. Variables that a library reads when it
            is imported have no effect.
    """

    def __init__(self, *words: object, cwd: str | Path = ROOT, environment: Mapping[str, str] | None = None) -> None:
        reader, writer = _SERVER.Pipe(duplex=False)
        with tempfile.NamedTemporaryFile(delete=False) as errors:
            self._errors = Path(errors.name)
        environment = dict(os.environ if environment is None else environment)
        with writer:
            self._process = _start(environment, _python, [str(word) for word in words], str(cwd), writer, self._errors)
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()
        self.pid = self._process.pid or 0
        self.kill = self._process.kill

    def poll(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 60) -> tuple[int, str, str]:
        """Exit status, output and errors, once it has ended. One that takes longer is killed."""
        killer = threading.Timer(timeout, self.kill)
        killer.start()
        printed = self.stdout.read()
        self._process.join()
        killer.cancel()
        self.stdout.close()
        errors = self._errors.read_text(encoding="utf-8", errors="replace")
        self._errors.unlink()
        status = self._process.exitcode
        assert status is not None
        return status, printed, errors


def python(*words: object, timeout: float = 900, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `python WORDS` to its end, with the options of `Python`."""
    return subprocess.CompletedProcess(words, *Python(*words, **options).communicate(timeout))


def _python(words: list[str], cwd: str, printed: Connection, errors: Path) -> None:
    os.chdir(cwd)
    os.dup2(printed.fileno(), 1)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            _interpret(*words)
        finally:
            atexit._run_exitfuncs()  # which multiprocessing leaves out
    except KeyboardInterrupt:  # as the interpreter ends
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _interpret(first: str, *rest: str) -> None:
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
