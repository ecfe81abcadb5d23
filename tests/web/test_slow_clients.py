"""Clients that take their time, and clients that want everything, beside one that is as others are. Real sockets."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from prefixcap.captioner import Captioner
from prefixcap.web import connections, gate
from prefixcap.web.access import Access, client_of
from tests.conftest import slow_after
from tests.web.conftest import answer_of, connect, form, photograph, post, served

BODY = form(photograph(), max_tokens=2)


def caption(address: str, source: str = "127.0.0.1", *headers: str) -> int:
    with connect(address, source) as connection:
        connection.sendall(post(BODY, *headers))
        return answer_of(connection)[0]


class Trickle:
    """Connections on which each has sent a part of a request, and sends a byte more every so often."""

    def __init__(self, address: str, count: int, begun: bytes, rest: bytes, seconds: float = 0.5) -> None:
        self.connections = [connect(address) for _ in range(count)]
        self._rest, self._seconds, self._end = rest, seconds, threading.Event()
        for connection in self.connections:
            connection.sendall(begun)
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Trickle":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for connection in self.connections:
            connection.close()

    def _send(self) -> None:
        for byte in self._rest:
            if self._end.wait(self._seconds):
                return
            for connection in self.connections:
                with suppress(OSError):  # it was closed
                    connection.sendall(bytes([byte]))


def test_slow_clients_keep_nobody_waiting(captioner: Captioner) -> None:
    request = post(BODY)
    body = len(request) - len(BODY)
    with served(captioner, max_queue=4) as address, ExitStack() as stack:
        for begun in (0, 1, 20, body, body + 100):  # nothing, of the first line, of a header, no body, of the body
            stack.enter_context(Trickle(address, 64, request[:begun], request[begun:]))
        start = time.monotonic()
        for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2"):
            assert caption(address, source) == 200
        assert time.monotonic() - start < 20  # where it waited for them, it would be a minute


@pytest.mark.parametrize("begun", slow_after(1, ["a header", "nothing", "a line", "a second head"]))
def test_a_head_that_does_not_arrive_closes_its_connection(
    address: str, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    monkeypatch.setattr(connections, "SLOWEST_HEAD", 1.0)
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sent = {"nothing": b"", "a line": b"GE", "a header": b"GET / HTTP/1.1\r\nHo", "a second head": first}[begun]
    with Trickle(address, 1, sent, b"X" * 100, seconds=0.1) as trickle:
        if begun == "a second head":
            assert answer_of(trickle.connections[0])[0] == 200
        start = time.monotonic()
        assert closed(trickle.connections[0])
        assert time.monotonic() - start < 8  # the trickle itself takes ten seconds


def closed(connection: socket.socket) -> bool:
    """True once the other side has closed it, without an answer."""
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_comes_too_slowly_is_told_so(address: str, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(gate, "GRACE", 1.0)
    request, rest = post(BODY)[: -len(BODY)], BODY
    if chunked:
        request, rest = post(b"", "Transfer-Encoding: chunked"), b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    with Trickle(address, 1, request, rest, seconds=0.1) as trickle:
        status, headers, body = answer_of(trickle.connections[0])
        assert status == 408 and "too slowly" in json.loads(body)["error"] and headers["connection"] == "close"


def test_a_body_that_comes_steadily_is_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "GRACE", 0.5)
    monkeypatch.setattr(gate, "LEAST_RATE", 1000.0)
    request = post(BODY + b" " * 20_000)
    with connect(address) as connection:
        for part in range(0, len(request), 1000):  # some 1.6 s in all
            connection.sendall(request[part : part + 1000])
            time.sleep(0.08)
        assert answer_of(connection)[0] == 200


def test_the_rest_of_a_body_that_was_refused_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SLOWEST_HEAD", 1.0)
    head = post(b"", "Content-Length: 100000000")
    with Trickle(address, 1, head, b"x" * 100, seconds=0.1) as trickle:
        assert answer_of(trickle.connections[0])[0] == 413
        start = time.monotonic()
        assert closed(trickle.connections[0]) and time.monotonic() - start < 8


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SLOWEST_READER", 0.5)
    gradio = next(
        part for part in page(address).split('"') if part.startswith("./assets/index") and part.endswith("js")
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(connect_to(address))
        connection.sendall(f"GET {gradio[1:]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 200)
        time.sleep(3)
        with pytest.raises(ConnectionError):
            while connection.recv(1 << 20):
                pass
            raise ConnectionError  # it may have been closed in order, too


def connect_to(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def page(address: str) -> str:
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return answer_of(connection)[2].decode()


# ---- how much for one --------------------------------------------------------------------------------


def test_one_client_cannot_take_all_places(captioner: Captioner, request: pytest.FixtureRequest) -> None:
    with served(captioner, max_queue=8, max_per_client=1) as address, ThreadPoolExecutor(20) as pool:
        begun, go_on = request.getfixturevalue("held")
        first = pool.submit(caption, address)
        assert begun.wait(30)
        with connect(address) as connection:
            connection.sendall(post(BODY))
            status, headers, body = answer_of(connection)
        assert status == 503 and int(headers["retry-after"]) >= 1 and "at most 1" in json.loads(body)["error"]
        # A proxy that is trusted says for whom it asks; of the chain, the last one that is not trusted counts.
        assert caption(address, "127.0.0.1", "X-Forwarded-For: 127.0.0.1") == 503
        others = [pool.submit(caption, address, f"127.0.0.{number}") for number in (2, 3)]
        others += [
            pool.submit(caption, address, "127.0.0.1", f"X-Forwarded-For: {chain}")
            for chain in ("192.0.2.1", "127.0.0.1, 192.0.2.2, 127.0.0.1")
        ]
        time.sleep(0.5)  # so that they wait in the queue; were they not there yet, they would be told nothing else
        go_on.set()
        assert [answer.result() for answer in [first, *others]] == [200] * 5


def test_an_untrusted_client_cannot_ask_for_others(captioner: Captioner, request: pytest.FixtureRequest) -> None:
    access = Access(proxies="192.0.2.1")
    with served(captioner, max_per_client=1, access=access) as address, ThreadPoolExecutor(1) as pool:
        begun, go_on = request.getfixturevalue("held")
        first = pool.submit(caption, address)
        assert begun.wait(30)
        assert caption(address, "127.0.0.1", "X-Forwarded-For: 192.0.2.7") == 503
        go_on.set()
        assert first.result() == 200


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"), ("unknown", "unknown"), ("x" * 5000, "x" * 100),
    ],
)  # fmt: skip
def test_a_client_is_an_address_or_a_network_of_one_customer(address: str, client: str) -> None:
    assert client_of({"client": (address, 1)}) == client
    assert client_of({"client": None}) == ""


def test_when_connections_are_too_many_the_greediest_loses_its_oldest(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 20)
    with served(captioner) as address, ExitStack() as stack:
        honest = stack.enter_context(connect(address, "127.0.0.2"))
        honest.sendall(post(BODY)[:-10])
        idle = [stack.enter_context(connect(address)) for _ in range(60)]
        for connection in idle[:40]:
            assert closed(connection)
        honest.sendall(post(BODY)[-10:])
        assert answer_of(honest)[0] == 200
        assert caption(address) == caption(address, "127.0.0.3") == 200
        idle[-1].sendall(post(BODY))
        assert answer_of(idle[-1])[0] == 200


def test_when_bodies_hold_too_much_the_greediest_loses_its_oldest(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_ARRIVING", 8 << 20)
    large = form(bytes(4 << 20))
    with served(captioner) as address, ExitStack() as stack:
        honest = stack.enter_context(connect(address, "127.0.0.2"))
        honest.sendall(post(BODY)[:-10])
        greedy = [stack.enter_context(connect(address)) for _ in range(4)]
        for connection in greedy:
            connection.sendall(post(large)[:-10])
        assert closed(greedy[0])
        honest.sendall(post(BODY)[-10:])
        assert answer_of(honest)[0] == 200
        greedy[-1].sendall(post(large)[-10:])
        assert answer_of(greedy[-1])[0] == 400  # that is no image


def test_a_body_in_crumbs_is_refused(address: str) -> None:
    start = BODY[: BODY.index(b"\xff\xd8")]  # up to the image, which has any length
    crumbs = b"%x\r\n%b\r\n" % (len(start), start) + b"1\r\n-\r\n" * 50_000
    with connect(address) as connection:
        try:
            connection.sendall(post(b"", "Transfer-Encoding: chunked") + crumbs)
            status, _, body = answer_of(connection)
            assert status == 400 and "not a valid HTTP request" in json.loads(body)["error"]
        except ConnectionError:  # it was closed while the rest of them came
            pass
    assert caption(address) == 200


def test_larger_chunks_are_fine(address: str) -> None:
    body = BODY + bytes(8 << 20)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + 4096]), body[at : at + 4096]) for at in range(0, len(body), 4096)
    )
    with connect(address) as connection:
        connection.sendall(post(b"", "Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n")
        assert answer_of(connection)[0] == 200
