"""`prefixcap serve`: a captioner as a web page and an HTTP API."""

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

STATIC = Path(__file__).with_name("static")
FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}

EXAMPLES = (  # pictures of the small world, for a captioner that was trained on it
    Scene("red", "circle", "plain", "large", "middle", "meadow"),
    Scene("yellow", "star", "plain", "large", "left", "night"),
    Scene("pink", "heart", "dotted", "large", "middle", "snow"),
    Scene("blue", "square", "plain", "large", "middle", "meadow"),
    Scene("red", "square", "plain", "large", "middle", "meadow"),
)

GRACE = 20.0  # seconds that a stopping server has to finish what it has begun


def serve(
    ckpt: str | None = None,
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
    """Serve the web page and the HTTP API of a captioner until Ctrl-C or SIGTERM.

    What has been begun is then finished, within 20 seconds, and waiting requests are told to try again. A second
    signal ends the process at once.

    Args:
        ckpt: as `prefixcap.load` takes it; None: the captioner that comes with the package.
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
        datastore: the feature store that the captioner retrieves captions from, or several by name, of which visitors
            choose one; see `Captioner.use_datastore`.

    Raises:
        InputError: the port is in use or not allowed, the captioner, its encoder or the datastore cannot be loaded, the
            captioner needs a datastore or takes none, or a value is out of range.
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
            captioner = load(ckpt or photos.require_captioner(), usable_device(device))
            if datastore is not None:
                captioner.use_datastore(datastore)
            with tempfile.TemporaryDirectory() as folder:
                os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio creates a folder in it, and puts nothing there
                app = build_app(captioner, password, max_queue, max_per_client, access)
            name = ckpt or f"{photos.CARD}, the captioner that comes with the package (prefixcap info {photos.NAME}),"
            print(f"{name} is served at http://{f'[{address}]' if ':' in address else address}:{port}", flush=True)
            _allow_many_files()
            Server(app).run([listening])
            if app.state.batcher.working:  # its thread cannot be stopped, and Python would wait for it
                print("stopped", flush=True)
                os._exit(0)
    except KeyboardInterrupt:
        pass
    print("stopped")


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
    captioner: Captioner,
    password: str | None = None,
    max_queue: int = 64,
    max_per_client: int | None = None,
    access: Access | None = None,
) -> FastAPI:
    """Page and API as one ASGI application, with the captioner warmed up. `Server` runs it.

    Another ASGI server must not process proxy headers (uvicorn: `proxy_headers=False`), and should close connections on
    which no request arrives.

    Args:
        captioner: to serve; only one thread uses it.
        password, max_queue, max_per_client: as in `serve`.
        access: who may send requests; None: clients that use a local name of this machine.

    Raises:
        InputError: the captioner's encoder cannot be loaded, or it has no datastore and needs one.
    """
    from prefixcap.web.page import mount_page  # Gradio is slow to import

    def work(job: Job, items: list[Any]) -> Any:
        try:
            return job.run(captioner, items)
        except InputError as error:
            if len(items) == 1:
                return [error]
        return [work(job, [item])[0] for item in items]  # the mistake, e.g. a long prompt, may be in one of them only

    batcher = Batcher[Job, Any, Any](work)
    picture = captioner.encoder().preprocess(draw(EXAMPLES[0], np.random.default_rng(0)))
    # The first call in a thread takes longer.
    batcher.thread.submit(Captions().run, captioner, [Picture(picture)]).result()
    app = build_api(captioner, batcher, importlib.metadata.version("prefixcap"))
    examples = EXAMPLES if captioner.encoder_identity.name == "demo" else ()
    for number, scene in enumerate(examples):
        file = io.BytesIO()
        draw(scene, np.random.default_rng(number)).save(file, "JPEG", quality=92)
        app.add_api_route(f"/examples/{number}.jpg", _sent(file.getvalue(), "image/jpeg"), include_in_schema=False)
    for path, (name, media_type) in FILES.items():
        app.add_api_route(path, _sent((STATIC / name).read_bytes(), media_type), include_in_schema=False)
    methods: dict[str, Set[str]] = {
        route.path: route.methods or set() for route in app.routes if isinstance(route, Route)
    }
    methods |= dict.fromkeys(mount_page(app, captioner, len(examples)), READING)
    app.state.batcher = batcher
    app.state.slots = RequestSlots(max_queue, max_per_client or max(1, max_queue // 2))
    access = access or Access()
    app.add_middleware(Gate, paths=methods, password=password, slots=app.state.slots, origins=access.origins)
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
        self.batcher: Batcher[Job, Any, Any] = app.state.batcher
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
        self.batcher.stop()
        timers = [loop.call_later(GRACE, self.batcher.give_up), loop.call_later(GRACE + 2, self._hang_up)]
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
