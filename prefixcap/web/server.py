"""`prefixcap serve`: captioners as a web page and an HTTP API."""

import asyncio
import importlib.metadata
import io
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from prefixcap import photos
from prefixcap.captioner import Captioner, load
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import Scene
from prefixcap.errors import InputError
from prefixcap.utils.hardware import usable_device
from prefixcap.web.access import PROXIES, READING, Access, AccessMiddleware
from prefixcap.web.api import build_api
from prefixcap.web.batcher import Batcher
from prefixcap.web.connections import Connection
from prefixcap.web.gate import Gate, RequestSlots
from prefixcap.web.jobs import Captions, Job, Picture
from prefixcap.web.metrics import Metrics, MetricsMiddleware
from prefixcap.web.served import MOST_CHARACTERS, serve_each

STATIC = Path(__file__).with_name("static")
FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
} | {f"/{file.name}": (file.name, "text/javascript; charset=utf-8") for file in sorted(STATIC.glob("*.js"))}

EXAMPLES = (  # pictures of the small world, for a captioner that was trained on it
    Scene("red", "circle", "plain", "large", "middle", "meadow"),
    Scene("yellow", "star", "plain", "large", "left", "night"),
    Scene("pink", "heart", "dotted", "large", "middle", "snow"),
    Scene("blue", "square", "plain", "large", "middle", "meadow"),
    Scene("red", "square", "plain", "large", "middle", "meadow"),
)

GRACE = 20.0  # seconds that a stopping server has to finish what it has begun


def serve(
    ckpt: str | Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    max_queue: int = 64,
    device: str = "auto",
    max_per_client: int | None = None,
    root_path: str = "",
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    forwarded_allow_ips: str = PROXIES,
    datastore: str | Mapping[str, str] | None = None,
) -> None:
    """Serve the web page and the HTTP API of captioners until Ctrl-C or SIGTERM.

    What has been begun is then finished, within 20 seconds, and waiting requests are told to try again. A second
    signal ends the process at once.

    Args:
        ckpt: as `prefixcap.load` takes it; or several by name, the first by default; None: the captioner that comes
            with the package.
        host: the address to listen on; "0.0.0.0": all addresses of the machine.
        port: to listen on; 0: any free one.
        password: of page and API, under any user name; None: no authentication.
        max_queue: requests that may wait or be served at once; others are told that the server is busy.
        device: of the models; "auto": a GPU, if there is one.
        max_per_client: the share of `max_queue` that one address may use; None: half.
        root_path: of page and API as browsers see them, e.g. "/captions", where a proxy serves them below a path; "":
            from X-Forwarded-Prefix of a trusted proxy, else none.
        allow_hosts: host names that the server answers to, besides `host` and the local names of this machine; "*":
            any. A server on all addresses also answers to every IP address.
        allow_origins: other sites, e.g. "https://example.org", whose pages may use the API, and show the page in a
            frame; "*": any.
        forwarded_allow_ips: addresses and networks of proxies that are trusted, separated by commas; "*": all.
        datastore: the feature store that captioners retrieve captions from, or several by name, of which visitors
            choose one; see `Captioner.use_datastore`. Captioners that retrieve none do without.

    Raises:
        InputError: the port is in use or not allowed, a captioner, its encoder or the datastore cannot be loaded, a
            captioner needs a datastore or none takes one, or a value is out of range.
    """
    if password == "":
        raise InputError("the password is empty: give one, or none for no authentication")
    for name, value in (("max_queue", max_queue), ("max_per_client", max_per_client)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # until it serves, as Ctrl-C
        with _listen(host, port) as listening:
            address, port = listening.getsockname()[:2]
            access = Access(
                hosts=[host, address, *allow_hosts],
                any_address=address in ("0.0.0.0", "::"),
                origins=allow_origins,
                proxies=forwarded_allow_ips,
                root_path=root_path,
            )
            captioners = _load(ckpt, device, datastore)
            with tempfile.TemporaryDirectory() as folder:
                os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio creates a folder in it, and puts nothing there
                app = build_app(captioners, password, max_queue, max_per_client, access)
            _announce(ckpt, f"http://{f'[{address}]' if ':' in address else address}:{port}")
            _allow_many_files()
            Server(app).run([listening])
            # A thread cannot be stopped, and Python would wait for it.
            if any(batcher.working for batcher in app.state.batchers):
                print("stopped", flush=True)
                os._exit(0)
    except KeyboardInterrupt:
        pass
    print("stopped")


def _load(
    ckpt: str | Mapping[str, str] | None, device: str, datastore: str | Mapping[str, str] | None
) -> dict[str, Captioner]:
    named = {_short_name(ckpt): ckpt} if ckpt is None or isinstance(ckpt, str) else ckpt
    captioners = {name: load(path or photos.require_captioner(), usable_device(device)) for name, path in named.items()}
    retrieving = [each for each in captioners.values() if each.retrieves]
    if datastore is not None:
        for captioner in retrieving or captioners.values():  # where none retrieves, the first says so
            captioner.use_datastore(datastore)
    return captioners


def _short_name(ckpt: str | None) -> str:
    """What a captioner without a name is called: the last part of its path."""
    last = Path(ckpt or photos.NAME).name
    return "".join(filter(str.isprintable, last))[:MOST_CHARACTERS] or "captioner"


def _announce(ckpt: str | Mapping[str, str] | None, address: str) -> None:
    own = f"{photos.CARD}, the captioner that comes with the package (prefixcap info {photos.NAME}),"
    several = isinstance(ckpt, Mapping) and len(ckpt) > 1
    names = own if ckpt is None else ckpt if isinstance(ckpt, str) else ", ".join(ckpt)
    print(f"{names} {'are' if several else 'is'} served at {address}", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise InputError(f"cannot listen on {host}, port {port} ({reason}): choose another port or host") from error


def _allow_many_files() -> None:
    """Raise the limit of open files: each connection is one, and so is each larger image until it has been read."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def build_app(
    captioners: Captioner | Mapping[str, Captioner],
    password: str | None = None,
    max_queue: int = 64,
    max_per_client: int | None = None,
    access: Access | None = None,
) -> FastAPI:
    """Page and API as one ASGI application, with the captioners warmed up. `Server` runs it.

    Another ASGI server must not process proxy headers (uvicorn: `proxy_headers=False`), and should close connections on
    which no request arrives.

    Args:
        captioners: to serve, one or several by name, the first by default; only one thread uses them.
        password, max_queue, max_per_client: as in `serve`.
        access: who may send requests; None: clients that use a local name of this machine.

    Raises:
        InputError: a captioner's encoder cannot be loaded, it has no datastore and needs one, or its name cannot be
            shown.
    """
    from prefixcap.web.page import mount_page  # Gradio is slow to import

    named = {"captioner": captioners} if isinstance(captioners, Captioner) else captioners
    served = serve_each(named)
    for _, captioner, batcher in served.values():
        picture = captioner.encoder().preprocess(draw(EXAMPLES[0], np.random.default_rng(0)))
        # The first call in a thread takes longer.
        batcher.thread.submit(Captions().run, captioner, [Picture(picture)]).result()
    metrics = Metrics(served)
    app = build_api(served, metrics, importlib.metadata.version("prefixcap"))
    examples = EXAMPLES if all(each.encoder_identity.name == "demo" for each in named.values()) else ()
    for number, scene in enumerate(examples):
        file = io.BytesIO()
        draw(scene, np.random.default_rng(number)).save(file, "JPEG", quality=92)
        app.add_api_route(f"/examples/{number}.jpg", _sent(file.getvalue(), "image/jpeg"), include_in_schema=False)
    for path, (name, media_type) in FILES.items():
        app.add_api_route(path, _sent((STATIC / name).read_bytes(), media_type), include_in_schema=False)
    methods: dict[str, Set[str]] = {
        route.path: route.methods or set() for route in app.routes if isinstance(route, Route)
    }
    interesting = {*methods} - FILES.keys()
    methods |= dict.fromkeys(mount_page(app, named, len(examples)), READING)
    app.state.batchers = [each.batcher for each in served.values()]
    app.state.slots = RequestSlots(max_queue, max_per_client or max(1, max_queue // 2))
    access = access or Access()
    app.add_middleware(Gate, paths=methods, password=password, slots=app.state.slots, origins=access.origins)
    app.add_middleware(MetricsMiddleware, metrics=metrics, paths={"/", *interesting})
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(AccessMiddleware, access=access)
    return app


class Server(uvicorn.Server):
    """uvicorn with `Connection`, and a shutdown that every client is told of.

    Args:
        app: from `build_app`.
        log_level: of uvicorn.
    """

    def __init__(self, app: FastAPI, log_level: str = "warning") -> None:
        self.batchers: list[Batcher[Job, Any, Any]] = app.state.batchers
        self.slots: RequestSlots = app.state.slots
        config = uvicorn.Config(
            app, http=Connection, ws="none", proxy_headers=False, log_level=log_level, access_log=False
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down. The next signal has its default effect and ends the process."""
        self.should_exit = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has been begun, tell all others to try again, and end in bounded time."""
        loop = asyncio.get_running_loop()
        self.slots.stopping.set()
        for batcher in self.batchers:
            batcher.stop()
        timers = [*(loop.call_later(GRACE, batcher.give_up) for batcher in self.batchers)]
        timers.append(loop.call_later(GRACE + 2, self._hang_up))
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()

    def _hang_up(self) -> None:
        """Close the connections of clients that do not read their response."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _sent(content: bytes, media_type: str) -> Any:
    async def send() -> Response:
        return Response(content, media_type=media_type)

    return send
