"""SIGTERM to a real server process that many clients ask at once."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefixcap.captioner import Captioner
from tests.processes import Python
from tests.web.conftest import answer_of, connect, form, photograph, post

# A model that says so when it begins with a batch, and takes its time for it.
SERVE = """
import sys, time, warnings
from prefixcap.web import jobs, server
run, served = jobs.Captions.run, []

def slowly(job, captioner, images):
    if served:
        print("begun", len(images), flush=True)
        time.sleep(float(sys.argv[2]))
    served.append(len(images))
    return run(job, captioner, images)

jobs.Captions.run = slowly
warnings.simplefilter("ignore")
server.GRACE = float(sys.argv[3])
server.serve(sys.argv[1], port=0)
"""


@pytest.fixture(scope="module")
def folder(captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "captioner"
    captioner.save_pretrained(folder)
    return folder


@contextmanager
def process(folder: Path, seconds: float, grace: float = 20.0) -> Iterator[tuple[Python, str]]:
    process = Python("-c", SERVE, folder, seconds, grace)
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()


def ask(address: str, images: int = 1) -> tuple[int, str]:
    """Status, and Retry-After or the number of captions; 0 where no connection is made or it is closed."""
    try:
        with connect(address) as connection:
            connection.sendall(post(form(*[photograph()] * images, max_tokens=3)))
            status, headers, body = answer_of(connection)
    except OSError:
        return 0, ""
    given = json.loads(body)
    return status, headers.get("retry-after", "") if status == 503 else str(len(given.get("images", [])))


def ended(process: Python) -> tuple[int, list[str], str]:
    status, printed, complaints = process.communicate()
    return status, printed.splitlines(), complaints


def test_what_has_begun_is_answered_and_all_else_told_to_come_again(folder: Path) -> None:
    with process(folder, seconds=2.0) as (server, address), ThreadPoolExecutor(60) as pool:
        first = pool.submit(ask, address)
        assert server.stdout.readline() == "begun 1\n"
        waiting = [pool.submit(ask, address) for _ in range(20)]
        arriving = [connect(address) for _ in range(5)]
        for connection in arriving:
            connection.sendall(post(form(photograph()))[:-20])
        idle = connect(address)
        time.sleep(0.5)  # so that they are there; those that are not are refused as well
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        until = time.monotonic() + 0.5
        late = []
        while time.monotonic() < until:
            late.append(ask(address))
        code, printed, complaints = ended(server)
        assert time.monotonic() - start < 15
        assert first.result() == (200, "1")
        answers = [answer.result() for answer in waiting]
        assert answers.count((503, "1")) >= 15 and set(answers) <= {(503, "1"), (0, "")}
        assert set(late) <= {(503, "1"), (0, "")}
        assert [answer_of(connection)[0] for connection in arriving] == [503] * 5
        assert idle.recv(10) == b""
        assert (code, printed, complaints) == (0, ["stopped"], "")


@pytest.mark.slow
def test_a_request_of_which_a_part_has_begun_is_finished(folder: Path) -> None:
    with process(folder, seconds=1.0) as (server, address), ThreadPoolExecutor(60) as pool:
        first = pool.submit(ask, address)
        assert server.stdout.readline() == "begun 1\n"
        waiting = [pool.submit(ask, address, 12) for _ in range(4)]  # 48 images, of which 32 are done at once
        assert server.stdout.readline() == "begun 32\n"
        server.send_signal(signal.SIGTERM)
        code, printed, complaints = ended(server)
        assert first.result() == (200, "1")
        assert sorted(answer.result() for answer in waiting) == [(200, "12")] * 3 + [(503, "1")]
        assert (code, printed, complaints) == (0, ["begun 4", "stopped"], "")


@pytest.mark.parametrize("seconds", [60.0])
def test_what_takes_too_long_is_given_up(folder: Path, seconds: float) -> None:
    with process(folder, seconds, grace=1.0) as (server, address), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, address)
        assert server.stdout.readline() == "begun 1\n"
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert ended(server) == (0, ["stopped"], "")
        assert time.monotonic() - start < 15 and first.result() == (503, "1")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(folder: Path, second: signal.Signals) -> None:
    with process(folder, seconds=30.0) as (server, address):
        asking = threading.Thread(target=ask, args=(address,))
        asking.start()
        assert server.stdout.readline() == "begun 1\n"
        server.send_signal(signal.SIGINT)
        time.sleep(0.5)
        start = time.monotonic()
        server.send_signal(second)
        assert ended(server)[0] == -second and time.monotonic() - start < 5
        asking.join()
