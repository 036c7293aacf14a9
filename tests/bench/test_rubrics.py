"""Rubrics are data: parsed, never run; the published file only by its hash; ours have a version."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiwi_cli.bench.judges import house, rubrics
from kiwi_cli.bench.judges.parse import parse_scores
from kiwi_cli.bench.suites.items import BENCHMARKS
from kiwi_cli.errors import KiwiError, UsageError

# In the published file's form, in words of our own.
SCRIPT = '''
import os
STYLE_OPENING = "not a rubric"
GLOBAL_STYLE = """
Look at both.
Note: braces {like this} stay.
Form:
Brief reasoning: No more than 20 words.
**Did It**: A number from 1 to 5.
Kept & Whole: A number from 1 to 5.
Looks: 1-5.
It was asked: {edit_prompt}.
"""
LOCAL_ADD = """Form:
Did It: 1-5.
Looks: 1-5.
Asked: {edit_prompt}"""
SUBTITLES_EDIT = "Did It: 1-5.\\n{edit_prompt}"
prompt_type = {"global_style": GLOBAL_STYLE, "local_add": LOCAL_ADD}
raise SystemExit("this file was run")
'''
CHANGED = "house.py has changed: raise VERSION, then this hash"


def test_a_file_is_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "eval.py"
    path.write_text(SCRIPT)
    rubric = rubrics.authors_rubric("openve", path)
    assert rubric.version == "file-" + hashlib.sha256(SCRIPT.encode()).hexdigest()[:12]
    assert rubric.names("global_style") == ("Did It", "Kept & Whole", "Looks")
    assert rubric.names("local_add") == ("Did It", "Looks") and rubric.names("subtitle_edit") == ("Did It",)
    text = rubric.text("global_style", "add {edit} and {0}")
    assert "It was asked: add {edit} and {0}." in text and "{like this}" in text
    with pytest.raises(UsageError, match="none for 'camera_edit'"):
        rubric.text("camera_edit", "x")


BAD = {
    "not python": (b"def (", "not a Python file"),
    "binary": (b"\0\1\2", "not a Python file"),
    "nothing in it": (b"x = 1", "no rubrics"),
    "no scores": (b'GLOBAL_STYLE = "say what you think of {edit_prompt}"', "does not say which scores"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    path = tmp_path / "eval.py"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words):
        rubrics.authors_rubric("openve", path)
    with pytest.raises(UsageError, match="cannot read the rubrics"):
        rubrics.authors_rubric("openve", tmp_path / "missing.py")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Serves SCRIPT at the published address, on loopback; the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SCRIPT.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("KIWI_RUBRICS_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield asked
    server.shutdown()
    server.server_close()


def test_the_published_file_is_fetched_once_and_checked(site: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KiwiError, match="is not the published file: its sha256 is") as failure:
        rubrics.authors_rubric("openve")
    assert "--rubrics" in failure.value.hint and rubrics.COMMIT in site[0]
    right = hashlib.sha256(SCRIPT.encode()).hexdigest()
    monkeypatch.setitem(rubrics.PUBLISHED, "openve", ("eval_openve_gemini.py", right))
    assert rubrics.authors_rubric("openve").version == "Kiwi-Edit-223572d"
    assert rubrics.authors_rubric("openve").version == "Kiwi-Edit-223572d"
    assert len(site) == 2  # the wrong one, the right one; then the cache
    monkeypatch.setenv("KIWI_RUBRICS_URL", "http://127.0.0.1:1")
    monkeypatch.setitem(rubrics.PUBLISHED, "openve", ("eval_openve_gemini.py", "0" * 64))
    with pytest.raises(KiwiError, match="cannot fetch the authors' rubrics"):
        rubrics.authors_rubric("openve")


def test_the_house_rubrics_can_be_answered() -> None:
    for benchmark in BENCHMARKS.values():
        kind = "reference" if benchmark.name == "refvie" else benchmark.kind
        for category in benchmark.categories or ("add", "style"):
            text = house.rubric(category, "make it {blue}", kind)
            names = house.score_names(category)
            assert len(names) == 3 and "make it {blue}" in text and len(text) < 3000
            answer = "Why: so.\n" + "\n".join(f"{name}: 3" for name in names)
            assert parse_scores(answer, names)[0] == dict.fromkeys(names, 3)
            for name in names:
                assert f"{name}: <1 to 5>" in text


def test_the_version_goes_with_the_words() -> None:
    words = "\n".join(
        house.rubric(category, "INSTRUCTION", kind)
        for kind in ("video", "reference", "image")
        for category in (*house.CATEGORIES, "other")
    )
    assert (house.VERSION, hashlib.sha256(words.encode()).hexdigest()[:16]) == ("house-1", "b1992317ce297cd5"), CHANGED
