"""A model hub on this machine: as much of the hub's HTTP API as its client and transformers use.

Repositories are created, written in commits (small files within them, `LARGE` ones by Git LFS), and read by revision.
Private and gated ones ask for a token. Large files are served by another host name, which must not be sent one. A
client that is to use this hub gets its address as `HF_ENDPOINT`, which is read when huggingface_hub is imported.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

OWNER, STRANGER = "hf_owner", "hf_stranger"  # tokens: of a user called "someone", and of one without rights
LARGE = (".safetensors", ".bin")
KINDS = {"models": "", "spaces": "spaces/"}  # in paths of the API -> in front of a repository's name elsewhere


@dataclass
class Repo:
    """A repository.

    Attributes:
        private, gated: whether only its owner may see it, or read its files.
        commits: the files of each commit, by path.
        tags: names of commits.
    """

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the last commit."""
        return self.commits[self.resolve("main") or ""]

    def commit(self, changed: dict[str, bytes]) -> str:
        """Add files; -> the commit's hash."""
        files = (self.files if self.commits else {}) | changed
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> str | None:
        """The hash of the commit of this name."""
        names = {sha: sha for sha in self.commits} | {"main": list(self.commits)[-1]} if self.commits else {}
        return (names | self.tags).get(revision)


class Hub(ThreadingHTTPServer):
    """A hub that has nothing at first.

    Attributes:
        repos: by name; a Space as "spaces/someone/name".
        requests: method, path and Range of those that came.
        cut: the byte of a large file before which the connection breaks; None: none.
        cuts: how often it still breaks.
        down: whether every request is answered with an error of the server.
        cards: the YAML of model cards that were sent to be checked.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # of Git LFS, by their SHA-256
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: int | None = None
        self.cuts = 0
        self.down = False
        self.cards: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables for a process that uses this hub, with its cache in `home`."""
        variables = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return variables | ({} if token is None else {"HF_TOKEN": token})

    def add(self, name: str, folder: Path, **options: bool) -> Repo:
        """A repository with the files of a folder, as its first commit."""
        repo = self.repos[name] = Repo(**options)
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        repo.commit(files)
        self.objects |= {_sha256(content): content for path, content in files.items() if path.endswith(LARGE)}
        return repo


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Refused(Exception):
    """An answer that is an error: its status, and the headers that the client reads."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **headers} | ({} if code is None else {"X-Error-Code": code})


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlparse(self.path).path.removeprefix("/")
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        try:
            if self.server.down:
                raise _Refused(503, "The hub is down")
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in ("", OWNER, STRANGER):
                raise _Refused(401, "Invalid credentials in Authorization header")
            self._route(path, body, token)
        except _Refused as refused:
            self._send(refused.status, {"error": refused.message}, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _route(self, path: str, body: bytes, token: str) -> None:
        hub, parts = self.server, path.split("/")
        match parts:
            case ["api", "validate-yaml"]:
                hub.cards.append(json.loads(body)["content"])
                self._send(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(body), token)
            case ["lfs", oid] if self.command == "PUT":
                assert _sha256(body) == oid
                hub.objects[oid] = body
                self._send(200, {})
            case ["lfs", oid]:
                assert not token, "another host was sent the token"
                self._send_large(hub.objects[oid], oid)
            case ["api", kind, owner, name, *rest] if kind in KINDS:
                self._api(f"{KINDS[kind]}{owner}/{name}", rest, body, token)
            case [*name, "info", "lfs", "objects", "batch"]:
                self._repo("/".join(name).removesuffix(".git"), token, writes=True)
                objects = json.loads(body)["objects"]
                for each in objects:
                    each["actions"] = {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}
                self._send(200, {"transfer": "basic", "objects": objects})
            case _ if "resolve" in parts:
                name, _, file = path.partition("/resolve/")
                revision, _, file = file.partition("/")
                self._file(name, unquote(revision), unquote(file), token)
            case _:
                raise _Refused(404, f"no such place: {path}")

    def _create(self, about: dict[str, Any], token: str) -> None:
        owner, kind = about["organization"], about.get("type")
        if not token:
            raise _Refused(401, "Invalid username or password.")
        if (token, owner) != (OWNER, "someone"):
            raise _Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{'spaces/' if kind == 'space' else ''}{owner}/{about['name']}"
        if name in self.server.repos:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"})
            return
        private = about.get("private", False) or about.get("visibility") == "private"
        self.server.repos[name] = Repo(private=private)
        self._send(200, {"url": f"{self.server.address}/{name}"})

    def _repo(self, name: str, token: str, writes: bool = False) -> Repo:
        """A repository that the holder of a token may see, or write; a private one is hidden as if there were none."""
        repo = self.server.repos.get(name)
        if repo is None or ((repo.private or writes) and token != OWNER):
            if not token:  # the client reads no code of a 401, but asks whether the address begins with https
                raise _Refused(401, "Invalid username or password.", "RepoNotFound")
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _revision(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def _api(self, name: str, rest: list[str], body: bytes, token: str) -> None:
        match rest:
            case ["preupload", "main"]:
                self._repo(name, token, writes=True)
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
                self._send(200, {"files": [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]})
            case ["commit", "main"]:
                changed = dict(map(self._committed, body.splitlines()[1:]))  # the first line is the message
                sha = self._repo(name, token, writes=True).commit(changed)
                self._send(200, {"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha})
            case [] | ["revision", _]:
                repo = self._repo(name, token)
                sha = self._revision(repo, unquote(rest[-1]) if rest else "main")
                files = [{"rfilename": path} for path in repo.commits[sha]]
                self._send(200, {"id": name, "sha": sha, "private": repo.private, "siblings": files})
            case ["tree", revision, *folder]:
                repo = self._repo(name, token)
                files = repo.commits[self._revision(repo, unquote(revision))]
                inside = [path for path in files if path.startswith("".join(f"{part}/" for part in folder))]
                if folder and not inside:
                    raise _Refused(404, f"{'/'.join(folder)} does not exist", "EntryNotFound")
                self._send(200, [_listed(path, files[path]) for path in inside])
            case _:
                raise _Refused(404, f"no such place: {name} {rest}")

    def _committed(self, line: bytes) -> tuple[str, bytes]:
        entry = json.loads(line)
        value = entry["value"]
        large = entry["key"] == "lfsFile"
        return value["path"], self.server.objects[value["oid"]] if large else base64.b64decode(value["content"])

    def _file(self, name: str, revision: str, path: str, token: str) -> None:
        repo = self._repo(name, token)
        if repo.gated and token != OWNER:
            raise _Refused(403 if token else 401, f"Access to model {name} is restricted.", "GatedRepo")
        sha = self._revision(repo, revision)
        content = repo.commits[sha].get(path)
        if content is None:
            raise _Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        if path.endswith(LARGE):
            oid = _sha256(content)
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": sha}
            self._send(302, b"", {"Location": f"http://localhost:{self.server.server_port}/lfs/{oid}", **linked})
        else:
            self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha})

    def _send_large(self, content: bytes, oid: str) -> None:
        """A file, or the rest of it from where the client asks to go on; until the connection is cut."""
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{oid}"', "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        breaks = self.command == "GET" and self.server.cut is not None and self.server.cuts > 0
        end = max(self.server.cut or 0, start) if breaks else len(content)
        self._send(206 if start else 200, content[start:], headers if start else {"ETag": f'"{oid}"'}, end - start)
        if breaks:
            self.server.cuts -= 1
            self.close_connection = True

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None, most: int | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:most])

    def log_message(self, *_: Any) -> None:
        pass


def _listed(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    listed = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    lfs = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return listed | ({"lfs": lfs} if path.endswith(LARGE) else {})


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
