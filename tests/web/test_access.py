"""Who may ask: by which name, from which page, through which proxy."""

import json
from collections.abc import Callable

import pytest

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.web.access import Access
from tests.web.conftest import answer_of, connect, form, photograph, post, served

Ask = Callable[..., tuple[int, dict[str, str], bytes]]


def get(path: str = "/health", *headers: str, host: str = "localhost") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def asked(address: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(address) as connection:
        connection.sendall(request)
        return answer_of(connection)


def test_sites_that_may_use_the_api_may_show_the_page(captioner: Captioner) -> None:
    for origins, allowed in (((), "'self'"), (["https://huggingface.co"], "'self' https://huggingface.co")):
        with served(captioner, access=Access(origins=origins)) as address:
            policy = asked(address, get("/"))[1]["content-security-policy"]
            assert policy.endswith(f"; frame-ancestors {allowed}")


EVERYWHERE = (
    "/",
    "/docs",
    "/openapi.json",
    "/page.js",
    "/theme.css",
    "/api/info",
    "/health",
    "/nothing",
    "/examples/0.jpg",
)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "evil.example:7860", "127.0.0.1.nip.io"])
def test_another_name_is_refused_everywhere(address: str, host: str) -> None:
    for path in EVERYWHERE:
        status, _, body = asked(address, get(path, host=host))
        assert status == 403 and "--allow-host" in json.loads(body)["error"]
    status, _, body = asked(address, post(form(photograph()), host=host))
    assert status == 403 and list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "local host",
        "localhost:80:80",
        "me@localhost",
        "[::1",
        "localhost/x",
        "http://localhost",
        "[localhost]",
        "a" * 5000,
    ],
)
def test_what_is_no_name_is_refused(address: str, host: str) -> None:
    status, _, body = asked(address, get(host=host))
    assert 400 <= status < 500 and list(json.loads(body)) == ["error"] and len(body) < 300


def test_a_request_without_a_name_or_with_two_is_refused(address: str) -> None:
    for request in (
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        get("/health", "Host: evil.example"),
    ):
        assert asked(address, request)[0] == 400


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "localhost.", "127.0.0.1:7860", "[::1]:7860", "[0:0:0:0:0:0:0:1]"]
)
def test_names_that_a_machine_has_for_itself_are_known(address: str, host: str) -> None:
    assert asked(address, get(host=host))[0] == 200


@pytest.mark.slow
def test_names_that_are_given(captioner: Captioner) -> None:
    with served(captioner, access=Access(["Captions.example.org", "192.0.2.7", "fe80::1"])) as address:
        for host in ("captions.example.org:8080", "CAPTIONS.EXAMPLE.ORG.", "192.0.2.7", "[FE80::1]:7860", "localhost"):
            assert asked(address, get(host=host))[0] == 200, host
        for host in ("example.org", "192.0.2.8", "[fe80::2]", "x.captions.example.org"):
            assert asked(address, get(host=host))[0] == 403, host
    with served(captioner, access=Access(any_address=True)) as address:
        for host, status in (("192.0.2.8:7860", 200), ("[fe80::2]", 200), ("gpu-box", 403), ("1.2.3.4.nip.io", 403)):
            assert asked(address, get(host=host))[0] == status, host
    with served(captioner, access=Access("*")) as address:
        assert asked(address, get(host="evil.example"))[0] == 200
        assert asked(address, get(host="no name"))[0] == 400


FOREIGN = [
    ("Origin: https://evil.example",), ("Origin: http://localhost:3000",), ("Origin: null",), ("Origin: ",),
    ("Origin: http://localhost@evil.example",), ("Origin: javascript://localhost",), ("Origin: http://localhost/",),
    ("Referer: https://evil.example/page",), ("Sec-Fetch-Site: cross-site",), ("Sec-Fetch-Site: same-site",),
]  # fmt: skip
OWN = [
    (), ("Origin: http://localhost",), ("Origin: http://localhost:80",), ("Origin: https://LOCALHOST",),
    ("Sec-Fetch-Site: none",), ("Sec-Fetch-Site: same-origin",),
    ("Referer: http://localhost/page", "Sec-Fetch-Site: same-origin"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/api/caption", "/api/interpret", "/api/arithmetic", "/"])
def test_a_page_of_another_site_may_not_send_anything(address: str, path: str) -> None:
    for headers in FOREIGN:
        status, answered, body = asked(address, post(form(photograph()), *headers, path=path))
        assert status == 403 and list(json.loads(body)) == ["error"], headers
        assert not any(name.startswith("access-control") for name in answered)
    plain = post(b"{}", "Origin: https://evil.example").replace(b"multipart/form-data; boundary=x", b"text/plain")
    assert asked(address, plain)[0] == 403


def test_the_page_and_programs_may(address: str) -> None:
    for headers in OWN:
        assert asked(address, post(form(photograph(), max_tokens=2), *headers))[0] == 200, headers
    plain = post(b"{}").replace(b"multipart/form-data; boundary=x", b"text/plain")
    assert asked(address, plain)[0] == 415


def test_sites_that_are_allowed_may_use_the_api(captioner: Captioner) -> None:
    with served(
        captioner, "secret", access=Access(origins=["https://Example.org", "http://localhost:3000"])
    ) as address:
        basic = "Authorization: Basic OnNlY3JldA=="
        for origin in ("https://example.org", "http://localhost:3000"):
            request = post(form(photograph(), max_tokens=2), f"Origin: {origin}", basic)
            status, headers, _ = asked(address, request)
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            preflight = request.replace(b"POST ", b"OPTIONS ").replace(
                basic.encode(), b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization"
            )
            status, headers, _ = asked(address, preflight)
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            assert "authorization" in headers["access-control-allow-headers"].lower()
        for origin in ("http://example.org", "https://example.org.evil.example", "https://example.org:444"):
            assert asked(address, post(form(photograph()), f"Origin: {origin}", basic))[0] == 403


# ---- proxies -----------------------------------------------------------------------------------------


def test_a_prefix_is_where_the_page_finds_its_parts(address: str, captioner: Captioner) -> None:
    def base(request: bytes, at: str = address) -> str:
        status, _, body = asked(at, request)
        assert status == 200, body
        return body.decode().partition('<base href="')[2].partition('"')[0]

    assert base(get("/")) == "./"
    assert base(get("/", "X-Forwarded-Prefix: /captions")) == "/captions/"
    assert base(get("/", "X-Forwarded-Prefix: /a/b.c/")) == "/a/b.c/"
    for prefix in (
        "//evil.example", "///x", "javascript:alert(1)", "https://evil.example", "/a//b", "/..", "/a/../b", "captions",
        '/"><script>', "/a b", "/\\evil", "/a,/b", "/%2e", "/a\tb", "/x?y", "/x#y", "/\xe9",
    ):  # fmt: skip
        for path in ("/", "/api/info"):
            status, _, body = asked(address, get(path, f"X-Forwarded-Prefix: {prefix}"))
            assert status == 400 and list(json.loads(body)) == ["error"], prefix
    with served(captioner, access=Access(proxies="192.0.2.1,10.0.0.0/8")) as other:
        assert base(get("/", "X-Forwarded-Prefix: //evil.example", "X-Forwarded-Host: evil.example"), other) == "./"
    with served(captioner, access=Access(root_path="/captions/")) as other:
        for path in ("/", "/captions", "/captions/"):  # whether the proxy takes the path off or not
            assert base(get(path, "X-Forwarded-Prefix: /other"), other) == "/captions/"
        for path in ("/page.js", "/captions/page.js", "/api/info", "/captions/api/info", "/captions/docs"):
            assert asked(other, get(path))[0] == 200, path
        for path in ("/captionspage.js", "/captions/captions/", "/captions/gradio_api/info", "/other/"):
            assert asked(other, get(path))[0] == 404, path
        assert json.loads(asked(other, get("/openapi.json"))[2])["servers"] == [{"url": "/captions"}]
    with served(captioner, access=Access(root_path="/api")) as other:
        for path in ("/api/info", "/api/api/info", "/api/"):
            assert asked(other, get(path))[0] == 200, path
    assert "servers" not in json.loads(asked(address, get("/openapi.json"))[2])


def test_a_trusted_proxy_names_the_host_that_browsers_see(captioner: Captioner) -> None:
    public = ("X-Forwarded-Host: captions.example.org", "Origin: https://captions.example.org")
    with served(captioner, access=Access(["captions.example.org"])) as address:
        assert asked(address, post(form(photograph(), max_tokens=2), *public))[0] == 200
        assert asked(address, get("/", "X-Forwarded-Host: evil.example"))[0] == 403
        # A page whose name was pointed here could send the other header, but not this one.
        assert asked(address, get("/", "X-Forwarded-Host: localhost", host="evil.example"))[0] == 403
    with served(captioner, access=Access(["captions.example.org"], proxies="192.0.2.1")) as address:
        assert asked(address, post(form(photograph()), *public))[0] == 403


def test_settings_are_checked() -> None:
    wrong = [
        ({"hosts": [host]}, "allow_host")
        for host in ("", "https://example.org", "example.org:80", "a b", "a/b", "*.example.org")
    ]
    wrong += [
        ({"origins": [site]}, "allow_origin") for site in ("", "example.org", "https://example.org/", "null", "ftp://x")
    ]
    wrong += [({"root_path": path}, "root_path") for path in ("captions", "//evil", "/a/../b", "/a b", "https://x/y")]
    wrong += [
        ({"proxies": given}, "forwarded_allow_ips") for given in ("", "proxy.example", "10.0.0.0/33", "10.0.0.1,*")
    ]
    for options, name in wrong:
        with pytest.raises(InputError, match=f"^{name}"):
            Access(**options)  # type: ignore[arg-type]
