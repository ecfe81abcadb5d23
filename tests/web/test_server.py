"""`serve` as a process: starting, stopping, and what it prints."""

import signal
import socket
from pathlib import Path

import httpx
import pytest

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.web.server import serve
from tests.processes import Python

SERVE = """
import sys, warnings
from prefixcap.web.server import serve
warnings.simplefilter("ignore")
serve(sys.argv[1], port=0)
"""


def test_two_servers_run_beside_each_other_and_stop_cleanly(captioner: Captioner, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "captioner")
    processes = [Python("-c", SERVE, tmp_path / "captioner") for _ in range(2)]
    try:
        ports = []
        for process in processes:
            line = process.stdout.readline()
            assert line.startswith(f"{tmp_path / 'captioner'} is served at http://127.0.0.1:")
            ports.append(int(line.rpartition(":")[2]))
            with httpx.Client(base_url=line.split()[-1]) as client:
                assert client.get("/health").json() == {"status": "ok"}
                assert client.get("/api/info").json()["trained_on"] is None
        assert len(set(ports)) == 2
        for process, number in zip(processes, (signal.SIGINT, signal.SIGTERM), strict=True):
            process.send_signal(number)
            assert process.communicate() == (0, "stopped\n", "")
    finally:
        for process in processes:
            process.kill()


def test_a_port_that_is_taken_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1, port {port} \\(Address already in use\\)"):
            serve(str(tmp_path / "nothing"), port=port)
    with pytest.raises(InputError, match="port 70000"):
        serve(str(tmp_path / "nothing"), port=70000)
    with pytest.raises(InputError, match=r"cannot listen on 203\.0\.113\.1"):
        serve(str(tmp_path / "nothing"), host="203.0.113.1", port=0)


def test_mistakes_are_told_before_serving(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        serve(str(tmp_path / "nothing"), port=0)
    with pytest.raises(InputError, match="the password is empty"):
        serve(str(tmp_path / "nothing"), port=0, password="")
    with pytest.raises(InputError, match="max_queue must be at least 1, not 0"):
        serve(str(tmp_path / "nothing"), port=0, max_queue=0)
    with pytest.raises(InputError, match="device 'abacus' cannot be used"):
        serve(str(tmp_path / "nothing"), port=0, device="abacus")
