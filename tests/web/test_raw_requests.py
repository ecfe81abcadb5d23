"""Bytes that no browser sends: an answer in the 400s or none, no traceback, and a server that is well. Real sockets."""

import http.client
import json
import logging
import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefixcap.captioner import Captioner
from prefixcap.web import connections, gate
from tests.web.conftest import answer_of, connect, form, photograph, post, served

BODY = form(photograph(), max_tokens=2)
OPEN = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of these requests never end."""
    monkeypatch.setattr(connections, "SLOWEST_HEAD", 1.0)
    monkeypatch.setattr(gate, "GRACE", 1.0)


def asked(address: str, request: bytes) -> tuple[int, bytes]:
    """Status and body of the first answer; 0 where the connection was closed without one."""
    with connect(address) as connection:
        try:
            connection.sendall(request)
            status, _, body = answer_of(connection)
        except OSError:
            return 0, b""
        return status, body


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info or "never retrieved" in record.getMessage()]


PATHS = [
    b"/assets/" + b"a" * 300, b"/assets/" + b"a/" * 3000 + b"x", b"/static/" + b"%61" * 5000, b"/" + b"a" * 60_000,
    b"/assets/%00", b"/static/a%00b", b"/assets/..%2f..%2f..%2fetc%2fpasswd", b"/static/..%5c..%5croutes.py", b"/%",
    b"/assets", b"/assets/", b"/assets/.", b"/static/js", b"/assets/%ff%fe", b"/%c3%28", b"/static/%e2%82", b"/%zz",
    b"//assets/x", b"/./", b"/..", b"/assets/\\..\\x", b"http://localhost/", b"http://evil.example/", b"*", b"/%u0041",
    b"/api/caption/", b"/api//info", b"/API/INFO", b"/examples/-1.jpg", b"/examples/99999999999999999999.jpg",
    b"/\xe9", b"/assets/\xff", b"/gradio_api/file=" + b"a" * 5000, b"localhost:80",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30].decode("latin-1"))
def test_an_odd_path_is_not_found(address: str, caplog: pytest.LogCaptureFixture, path: bytes) -> None:
    status, body = asked(address, GET % path)
    assert 400 <= status < 500 and list(json.loads(body)) == ["error"] and len(body) < 300
    assert not tracebacks(caplog)


@pytest.mark.parametrize(
    "query", [b"page=zzz", b"deep_link=../../x", b"deep_link=%00", b"page=" + b"a" * 50_000, b"%ff", b"&" * 50_000]
)
def test_a_query_changes_nothing(address: str, query: bytes) -> None:
    assert asked(address, GET % b"/")[0] == 200
    assert asked(address, GET % b"/") == asked(address, GET % (b"/?" + query))


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "CONNECT", "PROPFIND", "get"])
def test_other_methods_are_refused(address: str, method: str) -> None:
    for path in ("/", "/api/caption", "/api/info", "/page.js", "/assets/x", "/docs"):
        connection = http.client.HTTPConnection(*address.removeprefix("http://").split(":"))
        connection.request(method, path)
        status = connection.getresponse().status
        assert status == 200 if (method, path) == ("HEAD", "/") else 400 <= status < 500
        connection.close()


HEADS = [
    b"", b"\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", bytes(1000),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    OPEN + b"X: " + b"a" * 100_000 + b"\r\n\r\n", OPEN + b"X: a\r\n" * 20_000 + b"\r\n",
    OPEN + b"X : a\r\n\r\n", OPEN + b"X: \x00\r\n\r\n", OPEN + b": a\r\n\r\n",
    *(post(BODY, f"Content-Length: {length}") for length in ("-1", "1e3", "9" * 23, "5", "0", "1000000", "+5", "")),
    post(BODY, "Content-Length: 5", "Content-Length: 6"), post(BODY, "Transfer-Encoding: gzip"),
    *(
        post(body, "Transfer-Encoding: chunked")
        for body in (
            b"zz\r\n\r\n", b"-5\r\n\r\n", b"f" * 17 + b"\r\n", b"5;" + b"a" * 200_000,
            b"0\r\n" + b"X: a\r\n" * 50_000, b"5\r\n--x\r\nX",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("request_", HEADS, ids=lambda request: f"{len(request)} {request[-12:].decode('latin-1')}")
def test_what_is_no_request_is_refused(address: str, caplog: pytest.LogCaptureFixture, request_: bytes) -> None:
    status, body = asked(address, request_)
    assert status == 0 or (400 <= status < 500 and list(json.loads(body)) == ["error"])
    assert not tracebacks(caplog)


def multipart(*parts: bytes) -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"


FIELD = b'Content-Disposition: form-data; name="count"\r\n\r\n1'
TYPE = "multipart/form-data; boundary=x"
BODIES = {
    "no boundary": (BODY, "multipart/form-data"),
    "an empty boundary": (BODY, "multipart/form-data; boundary="),
    "a long boundary": (BODY, "multipart/form-data; boundary=" + "x" * 5000),
    "another boundary": (BODY, "multipart/form-data; boundary=y"),
    "compressed": (BODY, TYPE + "\r\nContent-Encoding: gzip"),
    "many parts": (multipart(*[FIELD] * 100_000), TYPE),
    "many empty parts": (b"--x\r\n\r\n" * 100_000, TYPE),
    "no name": (multipart(b"Content-Disposition: form-data\r\n\r\n1"), TYPE),
    "no disposition": (multipart(b"\r\n1"), TYPE),
    "a large header": (multipart(b"X: " + b"a" * (8 << 20) + b"\r\n\r\n1"), TYPE),
    "many headers": (multipart(b"X: a\r\n" * 100_000 + b"\r\n1"), TYPE),
    "a large name": (multipart(b'Content-Disposition: form-data; name="' + b"a" * 4000 + b'"\r\n\r\n1'), TYPE),
    "blank lines": (b"\r\n" * (2 << 20), TYPE),
    "a form of names and values": (b"&" * (2 << 20), "application/x-www-form-urlencoded"),
    **{
        f"in {charset}": (BODY, f"{TYPE}; charset={charset}")
        for charset in [
            "utf-7",
            "unicode_escape",
            "punycode",
            "idna",
            "utf-16",
            "zlib",
            "undefined",
            "utf-8;charset=utf-7",
        ]
    },
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_no_form_is_refused(address: str, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    body, content_type = BODIES[kind]
    status, answer = asked(address, post(body).replace(TYPE.encode(), content_type.encode()))
    assert 400 <= status < 500 and list(json.loads(answer)) == ["error"] and len(answer) < 300
    assert not tracebacks(caplog)
    assert asked(address, post(BODY).replace(b"; boundary", b'; charset="UTF-8"; boundary'))[0] == 200


def test_a_client_that_waits_to_be_asked_for_its_body(address: str) -> None:
    request = post(BODY, "Expect: 100-continue")
    with connect(address) as connection:
        connection.sendall(request[: -len(BODY)])
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert answer_of(connection)[0] == 200
    with connect(address) as connection:  # refused before it sends anything
        connection.sendall(request[: -len(BODY)].replace(b"/api/caption", b"/api/nothing"))
        assert answer_of(connection)[0] == 404


def test_requests_in_a_row_are_answered_in_order(address: str) -> None:
    with connect(address) as connection:
        connection.sendall(post(BODY) + GET % b"/health" + GET % b"/nothing" + post(BODY) + b"garbage\r\n\r\n")
        answers = b"".join(iter(lambda: connection.recv(10_000), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"404", b"200", b"400"]


@pytest.mark.slow
def test_random_requests_leave_the_server_well(captioner: Captioner, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(0)
    chunks = b"5\r\n--x\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    seeds = [
        post(BODY), post(BODY, "Expect: 100-continue", "X-Forwarded-Prefix: /a"), post(BODY, path="/api/interpret"),
        post(chunks, "Transfer-Encoding: chunked"), GET % b"/", GET % b"/assets/x", *HEADS[:8],
    ]  # fmt: skip
    tokens = [*b'\r\n|\0|\xff|%00|..|/|:|HTTP/1.1|--x|"|;|=|\n'.split(b"|"), b"a" * 70_000]

    def mutated() -> bytes:
        request = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(request) + 1)
            kind = draw.randrange(4)
            if kind == 0:
                del request[at : at + draw.randint(0, 20)]
            elif kind == 1:
                request[at:at] = draw.choice(tokens)
            elif kind == 2:
                request[at : at + 1] = bytes([draw.randrange(256)])
            else:
                request[at:at] = request[: draw.randint(0, 200)]
        return bytes(request)

    requests = [mutated() for _ in range(300)]
    with served(captioner) as address, caplog.at_level(logging.WARNING), ThreadPoolExecutor(30) as pool:
        statuses = {status for status, _ in pool.map(lambda request: asked(address, request), requests)}
        assert statuses <= {0, 100, 200, *range(400, 500)} and len(statuses) > 4
        assert asked(address, post(BODY))[0] == 200
    assert not tracebacks(caplog)
