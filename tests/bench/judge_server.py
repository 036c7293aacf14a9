"""A judge on loopback that speaks the real protocols: Gemini's REST with resumable uploads, and chat completions.

It answers every question with scores that follow from the question, so that a test knows them, counts what would be
charged, and does whatever a test puts into `faults` instead, once each, in order.
"""

from __future__ import annotations

import hashlib
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

from kiwi_cli.bench.judges.rubrics import answer_names

KEY = "test-key-4711"


@dataclass
class Service:
    """State of the server.

    Attributes:
        faults: for questions: a status, (status, headers), 'hang', 'cut', 'broken json', 'no choices', 'malformed',
            'partial', 'bold', 'empty', or 'model NAME' (another model answers).
        upload_faults: for uploads: a status or 'failed' (never becomes active).
        paid: question -> times it was carried out. bodies, media: as they came, and sha256 of the files in order.
        model: the version that says it answered; None is the one asked for.
        pace: seconds an answer takes. polls: before an upload is active.
    """

    url: str = ""
    faults: list[Any] = field(default_factory=list)
    upload_faults: list[Any] = field(default_factory=list)
    paid: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    media: list[list[str]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    model: str | None = None
    pace: float = 0.0
    polls: int = 1
    keep_bodies: bool = True
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, queue: list[Any]) -> Any:
        with self.lock:
            return queue.pop(0) if queue else None

    @property
    def total(self) -> int:
        with self.lock:
            return sum(self.paid.values())


def question(rubric: str, media: list[str]) -> str:
    return hashlib.sha256(json.dumps([rubric, media]).encode()).hexdigest()


def expected_scores(names: tuple[str, ...], rubric: str) -> dict[str, int]:
    """What the server says of a question: known from its words alone."""
    return {name: 1 + hashlib.sha256((name + rubric).encode()).digest()[0] % 5 for name in names}


def names_in(rubric: str) -> tuple[str, ...]:
    return tuple(re.findall(r"^(.+): <1 to 5>$", rubric, re.MULTILINE)) or answer_names(rubric)


def answer_text(rubric: str, fault: Any) -> str:
    scores = expected_scores(names_in(rubric), rubric)
    lines = [f"{name}: {score}" for name, score in scores.items()]
    if fault == "malformed":
        return "I would rather not put a number on art."
    if fault == "partial":
        lines = lines[:-1]
    if fault == "bold":
        lines = [f"- **{name} :**  {score}/5" for name, score in scores.items()]
    if fault == "empty":
        return ""
    return "\n".join(["Why: it <b>looks</b> & feels so", *lines])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: Service

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.service.statuses[status] += 1
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        if headers and "error" in headers:  # a service's own words for it, instead of headers
            self.reply(headers, status)
            return
        words = {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 404: "NOT_FOUND", 400: "INVALID_ARGUMENT"}
        self.reply(
            {"error": {"code": status, "message": f"injected {status}", "status": words.get(status, "UNKNOWN")}},
            status,
            headers,
        )

    def has_key(self) -> bool:
        given = self.headers.get("x-goog-api-key") or (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given == KEY:
            return True
        if "chat" in self.path:
            self.reply({"error": {"message": "wrong key", "code": "invalid_api_key"}}, 401)
        else:
            self.reply({"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}, 400)
        return False

    def do_POST(self) -> None:
        service = self.service
        body = self.body()
        if not self.path.startswith("/session/") and not self.has_key():  # its address is the key
            return
        if self.path.startswith("/upload/"):
            fault = service.next_fault(service.upload_faults)
            if isinstance(fault, int):
                self.refuse(fault)
                return
            name = f"f{len(service.files)}-{time.monotonic_ns() % 10**9}"
            service.files[name] = {"polls": service.polls, "failed": fault == "failed"}
            self.reply({}, headers={"X-Goog-Upload-URL": f"{service.url}/session/{name}"})
        elif self.path.startswith("/session/"):
            name = self.path.rsplit("/", 1)[-1]
            service.files[name]["sha"] = hashlib.sha256(body).hexdigest()
            service.files[name]["size"] = len(body)
            self.reply({"file": self.describe(name)}, headers={"X-Goog-Upload-Status": "final"})
        elif self.path.endswith(":generateContent"):
            self.gemini(json.loads(body))
        elif self.path.endswith("/chat/completions"):
            self.openai(json.loads(body))
        else:
            self.refuse(404)

    def describe(self, name: str) -> dict[str, Any]:
        file = self.service.files[name]
        state = "FAILED" if file["failed"] else "PROCESSING" if file["polls"] > 0 else "ACTIVE"
        return {
            "name": f"files/{name}",
            "uri": f"{self.service.url}/v1/files/{name}",
            "mimeType": "video/mp4",
            "sizeBytes": str(file["size"]),
            "state": state,
        }

    def do_GET(self) -> None:
        if not self.has_key():
            return
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if name not in self.service.files:
            self.refuse(404)
            return
        self.service.files[name]["polls"] -= 1
        self.reply(self.describe(name))

    def do_DELETE(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if self.service.files.pop(name, None) is None:
            self.refuse(404)
            return
        self.service.deleted.append(name)
        self.reply({})

    def trouble(self) -> Any:
        """What a test wants to go wrong; None when the connection is spent on it."""
        fault = self.service.next_fault(self.service.faults)
        if isinstance(fault, int):
            self.refuse(fault)
            return None
        if isinstance(fault, tuple):
            self.refuse(*fault)
            return None
        if fault == "hang":
            time.sleep(3.5)
            self.close_connection = True
            return None
        if fault == "cut":
            self.close_connection = True
            return None
        return fault or "none"

    def carry_out(self, rubric: str, media: list[str], body: dict[str, Any]) -> None:
        with self.service.lock:
            self.service.paid[question(rubric, media)] += 1
            if self.service.keep_bodies:
                self.service.bodies.append(body)
                self.service.media.append(media)
            self.service.busy += 1
            self.service.most_busy = max(self.service.most_busy, self.service.busy)
        time.sleep(self.service.pace)
        with self.service.lock:
            self.service.busy -= 1

    def gemini(self, body: dict[str, Any]) -> None:
        fault = self.trouble()
        if fault is None:
            return
        asked = self.path.split("/models/")[-1].removesuffix(":generateContent")
        parts = [part for content in body["contents"] for part in content["parts"]]
        system = body.get("systemInstruction", {}).get("parts", [{}])[0].get("text", "")
        rubric = system or next((part["text"] for part in parts if "text" in part), "")
        data = [part["fileData"] for part in parts if "fileData" in part]
        names = [(file.get("fileUri") or file["file_uri"]).rsplit("/", 1)[-1] for file in data]  # both are accepted
        if any(self.service.files.get(name, {"polls": 1})["polls"] > 0 for name in names):
            self.refuse(400)  # a real service refuses a file that is not ACTIVE, or gone
            return
        self.carry_out(rubric, [self.service.files[name]["sha"] for name in names], body)
        if fault == "broken json":
            self.reply(b'{"candidates": [')
            return
        model = fault.removeprefix("model ") if fault.startswith("model ") else self.service.model or asked
        self.reply(
            {
                "candidates": [
                    {
                        "content": {"parts": [{"text": answer_text(rubric, fault)}], "role": "model"},
                        "finishReason": "STOP",
                    }
                ],
                "modelVersion": model,
                "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 50, "thoughtsTokenCount": 100},
            }
        )

    def openai(self, body: dict[str, Any]) -> None:
        fault = self.trouble()
        if fault is None:
            return
        system = "".join(m["content"] for m in body["messages"] if m["role"] == "system")
        parts = [part for m in body["messages"] if m["role"] == "user" for part in m["content"]]
        rubric = system or next(part["text"] for part in parts if part["type"] == "text")
        urls = [part[part["type"]]["url"] for part in parts if part["type"] != "text"]
        self.carry_out(rubric, [hashlib.sha256(url.encode()).hexdigest() for url in urls], body)
        if fault == "broken json":
            self.reply(b'{"choices": [')
            return
        model = fault.removeprefix("model ") if fault.startswith("model ") else self.service.model or body["model"]
        message = {"role": "assistant", "content": answer_text(rubric, fault)}
        if fault == "parts":
            message["content"] = [{"type": "text", "text": answer_text(rubric, fault)}]
        choices = [
            {
                "index": 0,
                "message": None if fault == "null message" else message,
                "finish_reason": "stop",
            }
        ]
        self.reply(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": model,
                "choices": [] if fault == "no choices" else choices,
                "usage": {"prompt_tokens": "many", "completion_tokens": None}
                if fault == "null message"
                else {"prompt_tokens": 1000, "completion_tokens": 150, "total_tokens": 1150},
            }
        )


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


@contextmanager
def serve() -> Iterator[Service]:
    service = Service()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"service": service}))
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
