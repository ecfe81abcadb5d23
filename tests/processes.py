"""Processes that begin with everything imported and nothing run, and that see no GPU.

They come from a server, not from the process of the tests: what tests have run there before (threads of autograd or of
OpenMP, a GPU) would not work in a process forked from it.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from unittest import mock

import torch

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([
    "tests.data_prep.test_kill", "tests.training.test_distributed", "tests.training.test_reliability",
    "clip", "peft",  # imported only where they are used
])  # fmt: skip


def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run a function, which has a name in its module, in a process of its own."""
    process = _SERVER.Process(target=_run, args=(function, *arguments))
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # the first process starts the server
        process.start()
    return process


def _run(function: Callable[..., None], *arguments: object) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of what it starts itself, as if it had been started alone
    torch.set_num_threads(1)
    function(*arguments)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
