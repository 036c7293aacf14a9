"""Runway and fal on loopback, served to their real clients: uploads, tasks, results, and every way they can fail.

The edit is the clip itself, or what a test puts into `result`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "secret-key-4711"


@dataclass
class Services:
    """State of the server.

    Attributes:
        faults: step -> what to do instead, once each, in order: a status, (status, body), 'hang', or a task's end:
            'failed', 'refused', 'cancelled', 'never'. Steps: 'upload', 'begin', 'state', 'download'.
        steps: how often each was carried out. polls: looks before a task is done.
        begun: arguments of the tasks, as they came. cancelled: tasks.
        result: the edited clip; None is the one that was uploaded.
    """

    url: str = ""
    faults: dict[str, list[Any]] = field(default_factory=dict)
    steps: Counter[str] = field(default_factory=Counter)
    polls: int = 1
    begun: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    clips: dict[str, bytes] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    result: bytes | None = None
    ends: dict[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def fault(self, step: str) -> Any:
        with self.lock:
            self.steps[step] += 1
            queue = self.faults.get(step)
            return queue.pop(0) if queue else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    services: Services

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, data: Any, status: int = 200) -> None:
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def trouble(self, step: str) -> Any:
        """What a test wants instead; 'none', or None when the answer is given already."""
        fault = self.services.fault(step)
        if isinstance(fault, int):
            fault = (fault, {"error": f"injected {fault}", "detail": f"injected {fault}"})
        if isinstance(fault, tuple):
            self.reply(fault[1], fault[0])
            return None
        if fault == "hang":
            self.services.stop.wait(60)
            self.close_connection = True
            return None
        return fault or "none"

    def do_POST(self) -> None:
        services, body, path = self.services, self.body(), self.path.split("?")[0]
        services.keys.add(self.headers.get("Authorization") or "")
        if path == "/v1/uploads":
            self.reply({"runwayUri": "runway://clip", "uploadUrl": f"{services.url}/put", "fields": {"a": "b"}})
        elif path == "/put":
            if self.trouble("upload") is not None:
                start = body.index(b"\r\n\r\n", body.index(b'name="file"')) + 4
                services.files.append(body[start : body.rindex(b"\r\n--")])
                self.reply(b"", 204)
        elif path == "/storage/auth/token":
            soon = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 3600))
            self.reply({"token": "t", "token_type": "Bearer", "base_url": services.url, "expires_at": soon})
        elif path == "/files/upload":
            if self.trouble("upload") is not None:
                services.files.append(body)
                self.reply({"access_url": f"{services.url}/files/{len(services.files)}"})
        else:
            self.begin(path, json.loads(body))

    def begin(self, path: str, arguments: dict[str, Any]) -> None:
        services = self.services
        fault = self.trouble("begin")
        if fault is None:
            return
        services.begun.append({"path": path, **arguments})
        name = f"task-{len(services.begun)}"
        services.ends[name] = fault
        number = arguments["video_url"].rpartition("/")[2] if "video_url" in arguments else len(services.files)
        services.clips[name] = services.files[int(number) - 1]
        base = f"{services.url}/requests/{name}"
        self.reply(
            {"id": name, "estimatedCost": {"credits": 56}}
            if path == "/v1/video_to_video"
            else {
                "request_id": name,
                "response_url": base,
                "status_url": f"{base}/status",
                "cancel_url": f"{base}/cancel",
            }
        )

    def do_GET(self) -> None:
        services, path = self.services, self.path.split("?")[0]
        name = re.search(r"task-\d+", path)
        assert name, path
        if path.startswith("/results/"):
            if self.trouble("download") is not None:
                self.reply(services.clips[name[0]] if services.result is None else services.result)
            return
        fal = "/requests/" in path
        if fal and not path.endswith("/status"):
            if services.ends[name[0]] == "refused":
                self.reply({"detail": [{"loc": ["body"], "msg": "content policy", "type": "content_policy"}]}, 422)
            else:
                self.reply({"video": {"url": f"{services.url}/results/{name[0]}.mp4"}})
        elif self.trouble("state") is not None:
            services.seen[name[0]] += 1
            end = services.ends[name[0]]
            done = services.seen[name[0]] > services.polls and end != "never"
            self.reply(self.fal_state(end, done) if fal else self.runway_state(name[0], end, done))

    def runway_state(self, name: str, end: str, done: bool) -> dict[str, Any]:
        state: dict[str, Any] = {"id": name, "createdAt": "2026-11-26T20:00:00Z"}
        if not done:
            return state | {"status": "RUNNING", "progress": 0.5, "estimatedCost": {"credits": 56}}
        if end in ("failed", "refused"):
            code = "SAFETY.INPUT.TEXT" if end == "refused" else "INTERNAL.BAD_OUTPUT.CODE01"
            return state | {"status": "FAILED", "failure": "no such luck", "failureCode": code, "cost": {"credits": 0}}
        if end == "cancelled":
            return state | {"status": "CANCELLED", "cost": {"credits": 0}}
        url = f"{self.services.url}/results/{name}.mp4"
        return state | {"status": "SUCCEEDED", "output": [url], "cost": {"credits": 60}}

    def fal_state(self, end: str, done: bool) -> dict[str, Any]:
        if not done:
            return {"status": "IN_PROGRESS", "logs": None}
        more = {"error": "no such luck", "error_type": "downstream"} if end in ("failed", "cancelled") else {}
        return {"status": "COMPLETED", "logs": None, "metrics": {}, **more}

    def cancel(self) -> None:
        name = re.search(r"task-\d+", self.path)
        assert name
        self.services.cancelled.append(name[0])
        self.reply({})

    do_DELETE = do_PUT = cancel


@contextmanager
def serve() -> Iterator[Services]:
    services = Services()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"services": services}))
    server.daemon_threads, server.block_on_close = True, False
    services.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield services
    finally:
        services.stop.set()
        server.shutdown()
        server.server_close()


def use(monkeypatch: Any, services: Services) -> None:
    """Let both clients talk to this server, with a key, and wait for nothing longer than needed."""
    from fal_client import client

    for name, value in {"RUNWAYML_API_SECRET": KEY, "RUNWAYML_BASE_URL": services.url, "FAL_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "REST_URL": services.url,
        "CDN_URL": services.url,
        "QUEUE_URL_FORMAT": f"{services.url}/",
    }.items():
        monkeypatch.setattr(client, name, value)  # the client knows no other way to another address
    monkeypatch.setattr("kiwi_cli.editors.remote.POLL", 0.005)
    monkeypatch.setattr("kiwi_cli.editors.remote.FIRST_WAIT", 0.005)
