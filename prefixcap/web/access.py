"""Who may send requests: by which host names, from which sites' pages, and through which proxies.

A page of another site can send requests to a server that only its visitor's machine can reach and, by pointing its own
name to that machine (DNS rebinding), read the answers. So the Host header of a request must be one of this server's
names, and a request that starts work must not come from another site's page.
"""

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from prefixcap.errors import InputError

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
READING = frozenset({"GET", "HEAD"})  # methods without a body
MOST_HEADERS = 64 * 2**10  # bytes
PROXIES = "127.0.0.1,::1"  # trusted for X-Forwarded-* headers, unless others are named

# No part is empty or begins with a dot, so that a prefix never names another host or leads upwards.
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-][a-z0-9._-]*)(:[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://([^/?#@]+)")


class Access:
    """The host names that a server answers to, the sites whose pages may use it, and the proxies that it trusts.

    Args:
        hosts: names and addresses of the server, besides `LOCAL`; "*": any.
        any_address: also answer to every IP address, which no other site can claim.
        origins: other sites, e.g. "https://example.org", whose pages may use the API; "*": any.
        proxies: addresses and networks, separated by commas, whose X-Forwarded-For, -Host and -Prefix are trusted;
            "*": all.
        root_path: of the server as browsers see it, e.g. "/captions"; "": from X-Forwarded-Prefix.

    Raises:
        InputError: a name, site, address or path is malformed.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        any_address: bool = False,
        origins: Iterable[str] = (),
        proxies: str = PROXIES,
        root_path: str = "",
    ) -> None:
        self.hosts = {_host(name) for name in hosts} | LOCAL
        self.any_address = any_address
        self.origins = {_origin(site) for site in origins}
        self.proxies = _networks(proxies)
        self.root_path = _prefix(root_path)


class AccessMiddleware:
    """ASGI middleware in front of everything else: refuses forbidden requests, and undoes what a proxy has changed.

    Args:
        app: the application.
        access: who may send requests.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._access = access
        self._forward = ProxyHeadersMiddleware(app, access.proxies)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a websocket is closed by the gate
            await self._forward(scope, receive, send)  # type: ignore[arg-type]
            return
        headers = Headers(scope=scope)
        trusted = bool(scope["client"]) and scope["client"][0] in self._forward.trusted_hosts
        prefix = self._access.root_path or scope.get("root_path", "")
        if trusted and not prefix:
            prefix = headers.get("x-forwarded-prefix", "").removesuffix("/")
        hosts = headers.getlist("host") + (headers.getlist("x-forwarded-host") if trusted else [])
        size = sum(len(name) + len(value) + 4 for name, value in headers.raw)
        answer = (
            (refusal(431, f"the headers are larger than {MOST_HEADERS >> 10} KB") if size > MOST_HEADERS else None)
            or self._unknown_host(hosts)
            or (None if scope["method"] in READING else self._foreign_page(headers, hosts))
            or (None if _PREFIX.fullmatch(prefix) else refusal(400, "X-Forwarded-Prefix must be a path like /captions"))
        )
        if answer:
            await answer(scope, receive, send)
        else:
            await self._forward({**scope, "root_path": prefix}, receive, send)  # type: ignore[arg-type]

    def _unknown_host(self, hosts: list[str]) -> JSONResponse | None:
        """The real Host is also checked where a proxy names another: a page can set any header but that one."""
        if not hosts:
            return refusal(400, "the request has no Host header")
        for host in hosts:
            name = _name(host)
            if name is None:
                return refusal(400, f"the Host header {host[:100]!r} is not a host name or address")
            if not (self._access.hosts & {name, "*"} or (self._access.any_address and _is_address(name))):
                return refusal(403, f"this server is not called {name[:100]!r}: --allow-host gives it that name")
        return None

    def _foreign_page(self, headers: Headers, hosts: list[str]) -> JSONResponse | None:
        """Browsers send Origin with every POST; other programs send none of these headers."""
        origin = headers.get("origin")
        if origin is None and (page := _ORIGIN.match(headers.get("referer", ""))):
            origin = page.group()
        if origin is None:
            foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        else:
            site = _ORIGIN.fullmatch(origin.lower())
            own = site is not None and _without_port(site[1]) in {_without_port(host.lower()) for host in hosts}
            foreign = not (own or self._access.origins & {origin.lower(), "*"})
        if not foreign:
            return None
        who = f"a page of {origin[:100]!r}" if origin else "a page of another site"
        return refusal(403, f"{who} may not use this server: --allow-origin lets pages of a site do so")


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A JSON response that says in one line what is wrong."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def client_of(scope: Scope) -> str:
    """What counts as one client: an IPv4 address, or a /64 IPv6 network, which usually belongs to one customer."""
    address = scope["client"][0] if scope["client"] else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return str(address)[:100]
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))


def _name(authority: str) -> str | None:
    """The normalized name or address in `name:port`; None if it is malformed."""
    match = _AUTHORITY.fullmatch(authority.lower())
    if match is None:
        return None
    try:
        return str(ipaddress.ip_address(match[1].strip("[]")))
    except ValueError:
        return None if match[1].startswith("[") else match[1].rstrip(".")


def _without_port(authority: str) -> str:
    """An authority without a default port, which browsers leave out."""
    return re.sub(r":(80|443)$", "", authority)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _host(given: str) -> str:
    name = given if given == "*" else _name(f"[{given}]" if given.count(":") > 1 and given[0] != "[" else given)
    if name is None or (":" in given and not _is_address(name)):
        raise InputError(f"allow_host {given!r} is not a host name: give it as captions.example.org, without a port")
    return name


def _origin(given: str) -> str:
    site = _ORIGIN.fullmatch(given.lower())
    if given != "*" and (site is None or not _AUTHORITY.fullmatch(site[1])):
        raise InputError(f"allow_origin {given!r} is not an origin: give it as https://example.org, without a path")
    return given.lower()


def _prefix(given: str) -> str:
    prefix = given.removesuffix("/")
    if not _PREFIX.fullmatch(prefix):
        raise InputError(f"root_path {given!r} is not a server path: give it as /captions")
    return prefix


def _networks(given: str) -> str:
    for network in [] if given == "*" else given.split(","):
        try:
            ipaddress.ip_network(network.strip())
        except ValueError as error:
            raise InputError(
                f"forwarded_allow_ips: {network.strip()!r} is neither an address nor a network: give them as "
                "127.0.0.1,10.0.0.0/8"
            ) from error
    return given
