"""How long a connection may keep the server waiting, and which one is closed when there are too many."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefixcap.web.access import client_of

SLOWEST_HEAD = 10.0  # seconds in which the head of a request must have arrived
SLOWEST_READER = 30.0  # seconds in which a client must have read something of an answer
MOST_CONNECTIONS = 512
MOST_FRAMING = 128 * 2**10  # bytes around the chunks of a body, which cost more time than the bytes in them
MOST_ARRIVING = 256 * 2**20  # bytes of requests that have not arrived yet, of all clients together

_NUMBERS = itertools.count()


class Connection(H11Protocol):
    """A client's connection, as uvicorn's, but with limits on how long it may keep the server waiting.

    When there are too many connections, or too many bytes of requests that have not arrived completely, one that keeps
    the server waiting is closed: the oldest of the address that has the most. A client that sends and reads normally is
    never chosen while others hold more, and one whose request is being served is never chosen.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._number = next(_NUMBERS)
        self._arriving = 0  # bytes of the request that has not arrived yet
        self._framing = 0  # of these, the bytes between the parts of its body
        self._address = client_of({"client": self.client})
        self._timer: asyncio.TimerHandle | None = None
        self._wait_for_client(SLOWEST_HEAD)
        if len(self.connections) > MOST_CONNECTIONS:
            self._close_one(lambda connection: 1)

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        body = len(cycle.body) if cycle else 0
        super().data_received(data)
        if self.cycle is not cycle:  # the head of a request has arrived
            self._stop_waiting()
            self._arriving, self._framing = len(data) if self.cycle.more_body else 0, 0
        elif self._answered():  # the next head begins, or the rest of a refused body arrives
            self._arriving = 0
            if self._timer is None:
                self._wait_for_client(SLOWEST_HEAD)
        elif cycle.more_body:
            self._framing += len(data) - (len(cycle.body) - body)
            self._count(len(data))
        else:
            self._arriving = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_client(SLOWEST_READER)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()
        if self._answered():
            self._wait_for_client(SLOWEST_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_waiting()
        self._arriving = 0

    def send_400_response(self, msg: str) -> None:
        """In JSON, as everything else; nothing if the response has begun."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": "this is not a valid HTTP request"}).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            for event in (
                h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # only HTTP is spoken here

    def _wait_for_client(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _keeps_waiting(self) -> bool:
        """Whether the client is to act next: no request has arrived that waits for its response."""
        return self._answered() or self.cycle.more_body or self.flow.write_paused

    def _count(self, received: int) -> None:
        """Count bytes of a body."""
        if self._framing > MOST_FRAMING:
            self.send_400_response("")
        before, self._arriving = self._arriving, self._arriving + received
        if self._arriving >> 20 > before >> 20:
            while sum(connection._arriving for connection in self._all()) > MOST_ARRIVING:
                self._close_one(lambda connection: connection._arriving)

    def _all(self) -> "list[Connection]":
        return [connection for connection in self.connections if isinstance(connection, Connection)]

    def _close_one(self, size: "Callable[[Connection], int]") -> None:
        """Close the oldest waiting connection of the address with the largest total; if there is none, this one."""
        waiting = [connection for connection in self._all() if connection._keeps_waiting() and size(connection)]
        sizes = Counter[str]()
        for connection in waiting:
            sizes[connection._address] += size(connection)
        chosen = max(waiting, key=lambda connection: (sizes[connection._address], -connection._number), default=self)
        chosen.transport.abort()
        self.connections.discard(chosen)
