"""A small Hub on loopback, served to the real client: one model repository, and every way it can fail.

It speaks the part of the protocol that a download needs: the listing of a revision with sizes and hashes, and
files by commit with ranges. Nothing is served but what a test put there, and only to 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "c0ffee" + "0" * 34
LFS_BYTES = 10_000  # larger files have a sha256, smaller ones git's hash, as on the Hub


@dataclass
class Hub:
    """What is served and what goes wrong.

    Attributes:
        repos: id -> path -> contents.
        failures: (method, path inside the repository or 'info') -> what to do instead, once each, in order:
            a status, ('status', headers), 'cut' (half the file), 'hang', 'flip' (a byte of it changed).
        always: the same, every time.
        requests: (method, kind or path) -> count.
        hashes: 'all'; 'etag' (the listing has none, as a mirror's); 'none' (files have none either).
        token: what must be presented, or None.
    """

    repos: dict[str, dict[str, bytes]]
    failures: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    always: dict[tuple[str, str], Any] = field(default_factory=dict)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    token: str | None = None
    commit: str = COMMIT
    endpoint: str = ""
    pace: float = 0.0
    hashes: str = "all"

    def fetched(self) -> set[str]:
        """Files whose contents were asked for."""
        return {path for (method, path), _ in self.requests.items() if method == "GET" and path != "info"}

    def trouble(self, method: str, path: str) -> Any:
        queue = self.failures.get((method, path))
        return queue.pop(0) if queue else self.always.get((method, path))


def entry(path: str, data: bytes) -> dict[str, Any]:
    """What the listing says of a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
    if len(data) > LFS_BYTES:
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


def etag(path: str, data: bytes) -> str:
    found = entry(path, data)
    return found["lfs"]["sha256"] if "lfs" in found else found["blobId"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/models/"):
            path = path.removeprefix("/api/models/")
            if "/tree/" in path:
                self.tree(path.partition("/tree/")[0])
                return
            repo, _, revision = path.partition("/revision/")
            self.info(method, repo, revision or "main")
        else:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            self.file(method, repo, rest.partition("/")[2])

    def info(self, method: str, repo: str, revision: str) -> None:
        self.hub.requests[method, "info"] += 1
        if self.fails(self.hub.trouble(method, "info")) or self.refused(repo):
            return
        if revision not in ("main", self.hub.commit):
            self.status(404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = [entry(path, data) for path, data in sorted(self.hub.repos[repo].items())]
        if self.hub.hashes != "all":
            files = [{key: said[key] for key in ("rfilename", "size")} for said in files]
        body = json.dumps({"id": repo, "sha": self.hub.commit, "siblings": files}).encode()
        self.send(200, body, {"Content-Type": "application/json"})

    def tree(self, repo: str) -> None:
        """The listing that other programs ask for."""
        files = []
        for path, data in sorted(self.hub.repos[repo].items()):
            said = entry(path, data)
            found = {"type": "file", "path": path, "size": len(data), "oid": said["blobId"]}
            if "lfs" in said:
                found["lfs"] = {"oid": said["lfs"]["sha256"], "size": len(data), "pointerSize": 134}
            files.append(found)
        self.send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})

    def file(self, method: str, repo: str, path: str) -> None:
        self.hub.requests[method, path] += 1
        trouble = self.hub.trouble(method, path)
        if self.fails(trouble) or self.refused(repo):
            return
        data = self.hub.repos[repo].get(path)
        if data is None:
            self.status(404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{self.tag(path, data)}"', "Accept-Ranges": "bytes"}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.hub.ranges.append(path)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if trouble == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send(206 if start else 200, data[start:], headers, method == "HEAD", cut=trouble == "cut")

    def tag(self, path: str, data: bytes) -> str:
        tag = etag(path, data)
        return tag[:20] if self.hub.hashes == "none" else tag

    def refused(self, repo: str) -> bool:
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.status(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            return True
        if repo not in self.hub.repos:
            self.status(404, {"X-Error-Code": "RepoNotFound"})
            return True
        return False

    def fails(self, trouble: Any) -> bool:
        """Do what a test wants instead of an answer; True when that was all."""
        if trouble is None or trouble in ("cut", "flip"):
            return False
        if trouble == "hang":
            time.sleep(30)
            self.close_connection = True
            return True
        if trouble == "page":
            self.send(200, b"<html>Welcome to the hotel</html>", {"Content-Type": "text/html"})
            return True
        status, headers = trouble if isinstance(trouble, tuple) else (trouble, {})
        self.status(status, headers)
        return True

    def status(self, status: int, headers: dict[str, str]) -> None:
        self.send(status, b"{}", headers)

    def send(self, status: int, body: bytes, headers: dict[str, str], head: bool = False, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if head or self.command == "HEAD":
            return
        half = body[: len(body) // 2] if cut else body
        for begin in range(0, len(half), 65536):
            self.wfile.write(half[begin : begin + 65536])
            if self.hub.pace:
                time.sleep(self.hub.pace)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


@contextmanager
def serve(repos: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    hub = Hub(repos)
    handler: Callable[..., Any] = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def folder_contents(folder: Path) -> dict[str, bytes]:
    """A checkpoint folder as a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
