"""A model hub on this machine, which speaks as much of the hub's HTTP API as pushing and downloading a model take."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

SHA = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """One repository, empty at first.

    Attributes:
        files: what was committed to it, by path.
        commits: how many there were.
        created: what the repository was made with.
        metadata: the YAML of its model card, as it was sent to be checked.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.created: dict[str, Any] = {}
        self.metadata = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlparse(self.path).path
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self.server.created = json.loads(body)
            self._send(200, {"url": f"{self.server.address}/someone/captioner"})
        elif path == "/api/validate-yaml":
            self.server.metadata = json.loads(body)["content"]
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/models/someone/captioner/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._send(200, {"files": modes})
        elif path == "/api/models/someone/captioner/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.server.commits += 1
            commit = {"commitUrl": f"{self.server.address}/someone/captioner/commit/{SHA}", "commitOid": SHA}
            self._send(200, {"success": True, **commit})
        else:
            self._send(404, {"error": f"no such place: {path}"})

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        files = {name: hashlib.sha1(content).hexdigest() for name, content in self.server.files.items()}
        if path in (f"/api/models/someone/captioner{of}" for of in ("", "/revision/main", f"/revision/{SHA}")):
            siblings = [{"rfilename": name} for name in files]
            self._send(200, {"id": "someone/captioner", "sha": SHA, "siblings": siblings})
        elif path == f"/api/models/someone/captioner/tree/{SHA}":
            entries = [
                {"type": "file", "oid": oid, "size": len(self.server.files[name]), "path": name}
                for name, oid in files.items()
            ]
            self._send(200, entries)
        elif (name := path.removeprefix(f"/someone/captioner/resolve/{SHA}/")) in files:
            self._send(200, self.server.files[name], {"ETag": f'"{files[name]}"', "X-Repo-Commit": SHA})
        else:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def model_hub() -> Iterator[Hub]:
    """A hub that listens on a free port of this machine."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
