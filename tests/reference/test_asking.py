"""Answers are read strictly, and a server's failures are no verdict on a row."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.data.reference.asking import answer_in, number_in
from kiwi_cli.data.reference.files import Unusable, place_of
from kiwi_cli.data.reference.recipe import Recipe, drawn
from kiwi_cli.data.reference.running import Going, go_through
from kiwi_cli.data.reference.triplets import read_triplets

from . import planted

GOOD = {"following": 9, "consistency": 9.5, "quality": 9}


@contextmanager
def server(answers: list[Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint that gives these answers in turn, the last one for ever; a number is a status. Its address, and what
    it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "key": self.headers.get("Authorization"), "path": self.path})
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, int):
                self.send_error(answer)
                return
            text = answer if isinstance(answer, str) else json.dumps(answer)
            reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{service.server_address[1]}/v1", asked
    finally:
        service.shutdown()
        service.server_close()


def asking(url: str, *stages: str) -> Recipe:
    """The drawn recipe, these of its stages done by the server."""
    recipe, named = drawn(), {"model": "judge", "url": url}
    if "score" in stages:
        recipe = replace(recipe, score=replace(recipe.score, by="endpoint", **named))
    if "ground" in stages:
        recipe = replace(recipe, ground=replace(recipe.ground, by="endpoint", **named))
    if "check" in stages:
        recipe = replace(recipe, check=replace(recipe.check, judge="endpoint", judge_model="judge", url=url))
    return recipe


@pytest.mark.parametrize("text", ['{"a": 1}', ' {"a": 1}\n', '```json\n{"a": 1}\n```', '```\n{"a": 1}```'])
def test_one_object_is_an_answer(text: str) -> None:
    assert answer_in(text) == {"a": 1}


@pytest.mark.parametrize(
    "text", ["", "8", "[1]", '{"a": 1} or so', 'I think {"a": 1}', '{"a": NaN}', '{"a": 1', "{" * 9999]
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(Unusable):
        answer_in(text)


@pytest.mark.parametrize("value", [None, "8", True, 11, -1, [8], float("inf")])
def test_a_number_out_of_range_is_none(value: Any) -> None:
    with pytest.raises(Unusable):
        number_in({"a": value}, "a", 0, 10)


def test_scores_from_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_ENDPOINT_KEY", "secret")
    table, _ = planted.drawn(tmp_path / "rows", 5, kinds=("change",))
    rows = list(read_triplets(table))
    low, words = {**GOOD, "quality": 3}, "It is an 8 I would say."
    with server([GOOD, low, words, {"following": 9}, 500, GOOD]) as (url, asked):
        recipe, going = asking(url, "score"), Going(stages=("read", "score"))
        standing, _ = go_through(tmp_path / "out", rows, recipe, going)
        reasons = sorted(reason for _, reason in standing.dropped.values())
        assert len(reasons) == 3 and all(stage == "score" for stage, _ in standing.dropped.values())
        assert "cannot be read" in reasons[0] and "no 'consistency'" in reasons[1] and "quality 3" in reasons[2]
        assert list(standing.failed.values()) == [f"'{url}/chat/completions' answered 500 Internal Server Error"]
        again, _ = go_through(tmp_path / "out", rows, recipe, replace(going, retry_failed=True))
        assert again.failed == {} and again.ran == {"score": 1} and len(again.dropped) == 3
    assert len(asked) == 6 and asked[0]["key"] == "Bearer secret" and asked[0]["path"] == "/v1/chat/completions"
    parts = asked[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 6 + ["text"] and rows[0].prompt in parts[-1]["text"]
    kept = json.loads((tmp_path / "out" / place_of("score", rows[0].key, ".json")).read_text())["figures"]
    assert kept["overall"] == 9.0
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"secret" not in everything


@pytest.mark.slow
def test_regions_and_references_from_a_server(tmp_path: Path) -> None:
    table, _ = planted.drawn(tmp_path / "rows", 1, kinds=("add",))
    rows = list(read_triplets(table))
    whole = {"edit": "subject", "phrase": "the ball", "box": [0, 0, 1000, 1000]}
    for answer, words in (
        (whole, None),
        ({**whole, "edit": "other"}, "no picture can show"),
        ({**whole, "box": [0, 0, 1001, 5]}, "no '2' from 0 to 1000"),
        ({**whole, "box": [9, 9, 9, 12]}, "box is empty"),
        ({**whole, "box": [0, 0, 5]}, "no box of four"),
        ({**whole, "phrase": ""}, "names no edit and phrase"),
        ({**whole, "box": [0, 0, 5, 5]}, "not where the frames differ"),
    ):
        with server([answer]) as (url, _):
            recipe = asking(url, "ground")
            standing, _ = go_through(tmp_path / "out", rows, recipe, Going(stages=("read", "score", "ground")))
        found = list(standing.dropped.values())
        assert found == [] if words is None else found[0][0] == "ground" and words in found[0][1]
    with server([{"judged": 4}]) as (url, asked):
        standing, _ = go_through(tmp_path / "out", rows, asking(url, "check"), Going())
        (dropped,) = standing.dropped.values()
        assert dropped[0] == "check" and "judged 4" in dropped[1] and len(asked) == 1
        assert "alone on a clean ground" in asked[0]["messages"][0]["content"][-1]["text"]


def test_a_server_that_refuses_ends_the_worker(tmp_path: Path) -> None:
    table, _ = planted.drawn(tmp_path / "rows", 2, kinds=("change",))
    from kiwi_cli.errors import KiwiError

    with server([401]) as (url, asked), pytest.raises(KiwiError, match="answered 401"):
        go_through(tmp_path / "out", list(read_triplets(table)), asking(url, "score"), Going())
    assert len(asked) == 1
