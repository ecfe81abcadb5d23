"""What is decided before a request is served: its path, its password, its size, and how many run at once."""

import asyncio
import base64
import binascii
import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from email.message import Message as Header

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefixcap.web.access import READING, client_of, refusal

MOST_BYTES = 32 * 2**20  # of a request's body
TOO_LARGE = f"a request holds at most {MOST_BYTES >> 20} MB: send fewer or smaller images"
MOST_TEXT = 64 * 2**10  # of a body without files, every byte of which is parsed
FORMS = {"multipart/form-data": MOST_BYTES, "application/x-www-form-urlencoded": MOST_TEXT}
SLOWEST = 120.0  # seconds in which a body must have arrived
GRACE = 10.0  # seconds before its rate counts
LEAST_RATE = 8 * 2**10  # bytes per second
RETRY_AFTER = {"Retry-After": "1"}
STOPPING = "the server is stopping: try again in a moment"

# Only these of Gradio's own paths are served, and only the files that exist in its folders. The page calls none of its
# functions; its other paths store uploads, read files and fetch URLs.
PAGE = ("/", "/theme.css")
PAGE_FOLDERS = ("/assets/", "/static/")

# With it the browser itself refuses everything that comes from, or goes to, another host. Which sites may show a page
# in a frame is added.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
    ]
)


class RequestSlots:
    """Slots for the requests that have arrived, and are waiting or being served.

    Args:
        most: slots of all clients together.
        most_per_client: of one client.

    Attributes:
        stopping: set when the server is about to stop; nothing new is begun then.
    """

    def __init__(self, most: int, most_per_client: int) -> None:
        self.most, self.most_per_client = most, most_per_client
        self.stopping = asyncio.Event()
        self._taken = Counter[str]()

    def reason_to_refuse(self, client: str) -> str | None:
        """Why a request of this client gets no slot; None if it gets one."""
        if self.stopping.is_set():
            return STOPPING
        if self._taken.total() >= self.most:
            return "busy: others are being served, try again in a moment"
        if self._taken[client] >= self.most_per_client:
            return f"busy: other requests of yours are being served, at most {self.most_per_client} at once"
        return None

    def acquire(self, client: str) -> None:
        """Give a slot to a request that has arrived. Raises HTTPException if there is none."""
        if reason := self.reason_to_refuse(client):
            raise HTTPException(503, reason, RETRY_AFTER)
        self._taken[client] += 1

    def release(self, client: str) -> None:
        """Free the slot of a request."""
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


class Gate:
    """ASGI middleware in front of everything that is served.

    Args:
        app: the application.
        paths: of the app, with their methods; other paths are answered with 404.
        password: for HTTP basic authentication, under any user name; None: no authentication. `/health` is open.
        slots: of requests with a body.
        origins: other sites that may show the page in a frame; "*": any.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Mapping[str, Set[str]],
        password: str | None,
        slots: RequestSlots,
        origins: Iterable[str] = (),
    ) -> None:
        self.app, self._paths, self._slots = app, paths, slots
        self._policy = "; ".join([POLICY, " ".join(["frame-ancestors 'self'", *sorted(origins)])]).encode()
        self._password = None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # there are none here
        else:
            path = self._path(scope)
            scope = {**scope, "path": scope.get("root_path", "") + path}  # as ASGI specifies
            if answer := self._refusal(scope, path):
                await answer(scope, receive, send)
            elif scope["method"] in READING:
                await self.app(scope, receive, _with_policy(send, self._policy))
            else:
                await self._work(scope, receive, send)

    def _path(self, scope: Scope) -> str:
        """The path below the server's root path, which a proxy may have stripped or left in place."""
        path, root = str(scope["path"]), str(scope.get("root_path", ""))
        if path in self._paths or not f"{path}/".startswith(f"{root}/"):
            return path
        return path[len(root) :] or "/"

    def _refusal(self, scope: Scope, path: str) -> JSONResponse | None:
        method, headers = scope["method"], Headers(scope=scope)
        if self._password is not None and path != "/health" and not self._knows_password(headers):
            challenge = {"WWW-Authenticate": 'Basic realm="prefixcap", charset="UTF-8"'}
            return refusal(401, "the password is missing or wrong", challenge)
        methods = self._paths.get(path)
        if methods is None:
            return refusal(404, "there is nothing here: see /docs")
        if method not in methods:
            return refusal(405, f"{method} is not for {path}: see /docs", {"Allow": ", ".join(sorted(methods))})
        if method in READING:
            return None
        most = _most_bytes(headers)
        if not most:
            return refusal(415, "send multipart/form-data in UTF-8, not compressed, with images as files: see /docs")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            return refusal(413, TOO_LARGE)
        if reason := self._slots.reason_to_refuse(client_of(scope)):  # before a body is sent in vain
            return refusal(503, reason, RETRY_AFTER)
        return None

    def _knows_password(self, headers: Headers) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(credentials, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._password or b"")

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, has_slot = client_of(scope), False

        def acquire() -> None:
            nonlocal has_slot
            self._slots.acquire(client)
            has_slot = True

        try:
            await self.app(
                scope, _limited(receive, _most_bytes(Headers(scope=scope)), acquire, self._slots.stopping), send
            )
        finally:
            if has_slot:
                self._slots.release(client)


def _most_bytes(headers: Headers) -> int:
    """The most bytes that a form may have; 0 for a body that is not a form as browsers send it.

    A form may name any of Python's codecs, and some of these take forever or do not return text.
    """
    header = Header()
    header["content-type"] = headers.get("content-type", "")
    charsets = {value.lower() for name, value in header.get_params([]) if name.lower() == "charset"}
    if not charsets <= {"utf-8", "utf8"} or headers.get("content-encoding", "identity").lower() != "identity":
        return 0
    return FORMS.get(header.get_content_type(), 0)


def _limited(receive: Receive, most: int, arrived: Callable[[], None], stopping: asyncio.Event) -> Receive:
    """`receive` that raises HTTPException after too many bytes, too long a wait for them, or when the server stops.

    Args:
        receive: of a request with a body.
        most: bytes of the body.
        arrived: called when the body is complete; raises HTTPException if there is no slot for it.
        stopping: of the server.
    """
    start = asyncio.get_running_loop().time()
    received, complete = 0, False

    async def limited() -> Message:
        nonlocal received, complete
        if complete:  # the next message says that the client has gone
            return await receive()
        message = await _first(receive, min(start + SLOWEST, start + GRACE + received / LEAST_RATE), stopping)
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(413, TOO_LARGE)
        if message["type"] == "http.request" and not message.get("more_body", False):
            complete = True
            arrived()
        return message

    return limited


async def _first(receive: Receive, deadline: float, stopping: asyncio.Event) -> Message:
    """The next message, if it arrives before the deadline and before the server stops."""
    message, stop = asyncio.ensure_future(receive()), asyncio.ensure_future(stopping.wait())
    try:
        timeout = deadline - asyncio.get_running_loop().time()
        await asyncio.wait((message, stop), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if message.done():
            return message.result()
        if stop.done():
            raise HTTPException(503, STOPPING, RETRY_AFTER)
        slow = f"the request came too slowly: within {SLOWEST:.0f} s, and more than {LEAST_RATE >> 10} KB a second"
        raise HTTPException(408, slow, {"Connection": "close"})
    finally:
        message.cancel()
        stop.cancel()


def _with_policy(send: Send, policy: bytes) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"content-security-policy", policy)]
        await send(message)

    return sending
