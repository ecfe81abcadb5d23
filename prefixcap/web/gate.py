"""What is decided about a request before its body is read: who may ask, how much at once, and for what."""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Mapping, Set

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = frozenset({"GET", "HEAD"})  # methods that send nothing
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MOST_BYTES = 32 * 2**20  # of a request's body
TOO_LARGE = f"a request holds at most {MOST_BYTES >> 20} MB: send fewer or smaller images"
SLOWEST = 60.0  # seconds that a body may take to arrive

# Of Gradio's own paths these alone are served. The page calls none of its functions; others of its paths keep uploads,
# read files and fetch URLs.
PAGE = ("/", "/theme.css")
PAGE_FOLDERS = ("/assets/", "/static/")

# The browser itself then refuses whatever would come from, or go to, another host.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "frame-ancestors 'self'",
    ]
)


class Gate:
    """ASGI middleware before everything else.

    Args:
        app: what it stands before.
        paths: of the app, beside those that Gradio's page needs, with their methods; others are not found.
        password: asked for by HTTP basic authentication, under any user name; None: nobody is asked. `/health` is open.
        most_requests: with a body, that are read, wait or are worked on at once; others hear that it is busy.
    """

    def __init__(self, app: ASGIApp, paths: Mapping[str, Set[str]], password: str | None, most_requests: int) -> None:
        self.app, self.most_requests = app, most_requests
        self._paths = {**dict.fromkeys(PAGE, READING), **paths}
        self._password = None if password is None else password.encode()
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # nothing here has one
        elif answer := self._refusal(scope["method"], scope["path"], Headers(scope=scope)):
            await answer(scope, receive, send)
        elif scope["method"] in READING:
            await self.app(scope, receive, _with_policy(send))
        else:
            self._requests += 1
            try:
                await self.app(scope, _limited(receive), send)
            finally:
                self._requests -= 1

    def _refusal(self, method: str, path: str, headers: Headers) -> JSONResponse | None:
        if self._password is not None and path != "/health" and not self._knows_password(headers):
            challenge = {"WWW-Authenticate": 'Basic realm="prefixcap", charset="UTF-8"'}
            return _error(401, "the password is missing or wrong", challenge)
        methods = READING if path.startswith(PAGE_FOLDERS) and "/.." not in path else self._paths.get(path)
        if methods is None:
            return _error(404, "there is nothing here: see /docs")
        if method not in methods:
            return _error(405, f"{method} is not for {path}: see /docs", {"Allow": ", ".join(methods)})
        if method in READING:
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() not in FORMS:
            return _error(415, "send multipart/form-data, with images as files: see /docs")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MOST_BYTES:
            return _error(413, TOO_LARGE)
        if self._requests >= self.most_requests:
            return _error(503, "busy: others are being served, try again in a moment", {"Retry-After": "1"})
        return None

    def _knows_password(self, headers: Headers) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(credentials, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._password or b"")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def _limited(receive: Receive) -> Receive:
    """`receive`, which ends in an error after too many bytes, or too long a wait for them."""
    deadline = asyncio.get_running_loop().time() + SLOWEST
    received, whole = 0, False

    async def limited() -> Message:
        nonlocal received, whole
        if whole:  # what comes now is that the client has gone
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise HTTPException(408, f"the request did not arrive within {SLOWEST:.0f} seconds") from error
        received += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if received > MOST_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message

    return limited


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
        await send(message)

    return sending
