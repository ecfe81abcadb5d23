"""`prefixcap serve`: a captioner as a web page and an HTTP API."""

import importlib.metadata
import io
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Response
from starlette.routing import Route

from prefixcap.captioner import Captioner
from prefixcap.checkpoints import load
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import Scene
from prefixcap.errors import InputError
from prefixcap.machine import usable_device
from prefixcap.web.api import build_api
from prefixcap.web.batcher import Batcher
from prefixcap.web.gate import Gate
from prefixcap.web.jobs import Captions, Job

STATIC = Path(__file__).with_name("static")
FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}

EXAMPLES = (  # of the small world, for who serves a captioner of it
    Scene("red", "circle", "plain", "large", "middle", "meadow"),
    Scene("yellow", "star", "plain", "large", "left", "night"),
    Scene("pink", "heart", "dotted", "large", "middle", "snow"),
    Scene("blue", "square", "plain", "large", "middle", "meadow"),
    Scene("red", "square", "plain", "large", "middle", "meadow"),
)


def serve(
    ckpt: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    max_queue: int = 64,
    device: str = "auto",
) -> None:
    """Serve the web page and the HTTP API of a captioner until Ctrl-C or SIGTERM.

    Args:
        ckpt: as `prefixcap.load` takes it.
        host: the address to listen on; "0.0.0.0" is all of the machine's.
        port: to listen on; 0: any that is free.
        password: asked for by page and API, under any user name; None: nobody is asked.
        max_queue: requests that are read, wait or are worked on at once; others are told that the server is busy.
        device: of the models; "auto": a GPU, if there is one.

    Raises:
        InputError: the port is in use or not allowed, the captioner or its encoder cannot be loaded, or a value makes
            no sense.
    """
    if password == "":
        raise InputError("the password is empty: give one, or none to ask nobody")
    if max_queue < 1:
        raise InputError(f"max_queue must be at least 1, not {max_queue}")
    try:
        with _listen(host, port) as listening:
            captioner = load(ckpt, usable_device(device))
            with tempfile.TemporaryDirectory() as folder:
                os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio makes a folder in it, and puts nothing there
                app = build_app(captioner, password, max_queue)
            address, port = listening.getsockname()[:2]
            print(f"{ckpt} is served at http://{f'[{address}]' if ':' in address else address}:{port}", flush=True)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does
            uvicorn.Server(config).run([listening])
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


def build_app(captioner: Captioner, password: str | None = None, max_queue: int = 64) -> FastAPI:
    """Page and API as one ASGI application, with the captioner ready.

    Args:
        captioner: to be served; used by one thread alone.
        password: as of `serve`.
        max_queue: as of `serve`.

    Raises:
        InputError: the captioner's encoder cannot be loaded.
    """
    from prefixcap.web.page import mount_page  # Gradio is slow to import

    def work(job: Job, items: list[Any]) -> Any:
        return job.run(captioner, items)

    batcher = Batcher[Job, Any, Any](work)
    picture = captioner.encoder().preprocess(draw(EXAMPLES[0], np.random.default_rng(0)))
    batcher.thread.submit(Captions().run, captioner, [picture]).result()  # what a thread does first takes longer
    app = build_api(captioner, batcher, importlib.metadata.version("prefixcap"))
    examples = EXAMPLES if captioner.encoder_identity.name == "demo" else ()
    for number, scene in enumerate(examples):
        file = io.BytesIO()
        draw(scene, np.random.default_rng(number)).save(file, "JPEG", quality=92)
        app.add_api_route(f"/examples/{number}.jpg", _sent(file.getvalue(), "image/jpeg"), include_in_schema=False)
    for path, (name, media_type) in FILES.items():
        app.add_api_route(path, _sent((STATIC / name).read_bytes(), media_type), include_in_schema=False)
    paths = {route.path: route.methods or set() for route in app.routes if isinstance(route, Route)}
    mount_page(app, captioner, len(examples))
    app.add_middleware(Gate, paths=paths, password=password, most_requests=max_queue)
    return app


def _sent(content: bytes, media_type: str) -> Any:
    async def send() -> Response:
        return Response(content, media_type=media_type)

    return send
