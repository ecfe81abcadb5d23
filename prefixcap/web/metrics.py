"""What the server counts, in Prometheus's text format at /metrics."""

import time
from collections.abc import Collection, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefixcap.web.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of a server.

    Args:
        served: the captioners by name.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "prefixcap_requests", "Requests, by path and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "prefixcap_request_seconds", "From the head of a request to the end of its answer.", ["path"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._in_progress = Gauge(
            "prefixcap_requests_in_progress", "Requests that are not answered.", registry=registry
        )
        self._images = Counter("prefixcap_images", "Images that a captioner did.", ["captioner"], registry=registry)
        self._errors = Counter(
            "prefixcap_image_errors", "Images that gave an error instead.", ["captioner"], registry=registry
        )
        queue = Gauge("prefixcap_queue_length", "Images and sums that wait.", ["captioner"], registry=registry)
        info = Gauge(
            "prefixcap_captioner_info", "The captioners that are served; always 1.",
            ["captioner", "encoder", "language_model"], registry=registry,
        )  # fmt: skip
        for name, each in served.items():
            self.images(name, 0, 0)
            queue.labels(name).set_function(partial(getattr, each.batcher, "queued"))
            info.labels(name, each.captioner.encoder_identity.name, each.captioner.language_model.name).set(1)
        ProcessCollector(registry=registry)

    def images(self, captioner: str, done: int, failed: int) -> None:
        """Count images that a captioner did, and that failed."""
        self._images.labels(captioner).inc(done)
        self._errors.labels(captioner).inc(failed)

    def text(self) -> bytes:
        """All counts."""
        return generate_latest(self._registry)

    def start(self) -> float:
        """A request begins; returns what `finish` takes."""
        self._in_progress.inc()
        return time.monotonic()

    def finish(self, started: float, path: str, status: int) -> None:
        """A request has ended."""
        self._in_progress.dec()
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(time.monotonic() - started)


class MetricsMiddleware:
    """ASGI middleware that counts requests.

    Args:
        app: the application.
        metrics: where they are counted.
        paths: those that are told apart; all others are "other", so that nobody can make up labels.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # nobody was there to take an answer

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
        started = self._metrics.start()
        try:
            await self._app(scope, receive, sending)
        finally:
            self._metrics.finish(started, path if path in self._paths else "other", status)
