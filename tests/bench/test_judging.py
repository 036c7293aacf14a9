"""Real clients against a judge on loopback: what goes out, what is kept, what is paid."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.batch.journal import read_lines
from kiwi_cli.bench import run as runs
from kiwi_cli.bench.judges.base import hash_media
from kiwi_cli.bench.judges.protocols import find_protocol
from kiwi_cli.bench.report import scores

from . import miniature
from .conftest import Kiwi, edited_run, start_process
from .judge_server import Service, expected_scores, names_in
from .judging import answers, judge, openai
from .test_rubrics import SCRIPT

pytest.importorskip("google.genai", reason="needs google-genai: pip install 'kiwi-cli[judge-gemini]'")

pytest.importorskip("openai", reason="needs openai: pip install 'kiwi-cli[judge-openai]'")


def test_gemini_gets_the_rubric_as_system_instruction_and_original_then_edit(
    kiwi: Kiwi, service: Service, openve_run: runs.Run
) -> None:
    code, out, err = kiwi(*judge(service, openve_run.folder), "--json")
    assert code == 0, err
    data = json.loads(out)["judged"]
    assert data["scored"] == data["answers"] == 8 == service.total and not data["failures"]
    assert (data["input_tokens"], data["output_tokens"]) == (8000, 8 * 150)
    assert "million tokens in" in err and "dollars at list price" in err
    for body in service.bodies:
        parts = body["contents"][0]["parts"]
        assert len(body["contents"]) == 1 and [list(part) for part in parts] == [["fileData"], ["fileData"]]
        assert body["systemInstruction"]["parts"][0]["text"].startswith("You compare two video clips")
        assert "temperature" not in body.get("generationConfig", {})
    wanted = [[hash_media(openve_run.source(item)), hash_media(openve_run.edited(item))] for item in openve_run.items]
    assert sorted(service.media) == sorted(wanted)
    assert not service.files and len(service.deleted) == 16  # every upload is deleted again


def test_every_score_says_who_gave_it(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    service.faults = ["model gemini-9-mystery"]
    code, _, err = kiwi(*judge(service, openve_run.folder), "--concurrency", 1)
    assert code == 0
    assert "'gemini-9-mystery' answered 1 questions put to 'gemini-3-flash-preview'" in err
    lines = answers(openve_run)
    assert [line["answered_by"] for line in lines] == ["gemini-9-mystery"] + ["gemini-3-flash-preview"] * 7
    for line in lines:
        assert line["protocol"] == "house" and line["rubric"] == "house-1" and line["asked"] == "gemini-3-flash-preview"
        assert len(line["request"]) == 64 and line["text"].startswith("Why: ") and line["time"] > 1.7e9
    judged = scores.collect(openve_run)
    assert sorted((entry.key.answered_by, len(entry.scores)) for entry in judged) == [
        ("gemini-3-flash-preview", 7),
        ("gemini-9-mystery", 1),
    ]
    assert judged[1].key.label == "gemini-9-mystery (asked: gemini-3-flash-preview)"


def test_the_scores_kept_are_the_scores_given(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    assert kiwi(*judge(service, openve_run.folder))[0] == 0
    given = {}
    for body in service.bodies:
        rubric = body["systemInstruction"]["parts"][0]["text"]
        item = next(item for item in openve_run.items if item.instruction in rubric)
        given[item.id] = expected_scores(names_in(rubric), rubric)
    assert {line["item"]: line["scores"] for line in answers(openve_run)} == given


def test_a_run_is_resumed_and_nothing_is_asked_twice(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    assert kiwi(*judge(service, openve_run.folder), "--limit", 3)[0] == 0
    assert kiwi(*judge(service, openve_run.folder))[0] == 0
    assert kiwi(*judge(service, openve_run.folder))[0] == 0
    assert set(service.paid.values()) == {1} and service.total == 8
    # Another result of an item is another question.
    item = openve_run.items[0]
    openve_run.edited(item).write_bytes(openve_run.source(item).read_bytes() + b"\0\0\0\x0cfreenew!")
    assert len(scores.collect(openve_run)[0].scores) == 7 and scores.collect(openve_run)[0].stale == {item.id}
    assert kiwi(*judge(service, openve_run.folder))[0] == 0
    assert service.total == 9 and len(scores.collect(openve_run)[0].scores) == 8


def test_a_broken_last_line_is_survived(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    assert kiwi(*judge(service, openve_run.folder), "--limit", 3, "--concurrency", 1)[0] == 0
    ledger = openve_run.folder / "judgements.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"kind": "answer"' in line)
    ledger.write_bytes(b"".join(lines[:last]) + lines[last][:100])
    code, _, err = kiwi(*judge(service, openve_run.folder))
    assert code == 0 and "1 questions were on their way" in err
    assert service.total == 9 and len(scores.collect(openve_run)[0].scores) == 8
    assert ledger.read_bytes().count(lines[last][:100]) == 1  # what was broken stays, and stands alone


@pytest.mark.parametrize(
    "moment", [5, *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("first upload", "polling", 1, 11))]
)
def test_killed_at_any_point_nothing_finished_is_lost_or_paid_again(
    service: Service, tmp_path: Path, moment: Any
) -> None:
    run = edited_run(tmp_path / "run", "openve", miniature.openve(tmp_path / "data", per_type=2))
    service.pace = 0.03
    service.polls = 10_000 if moment == "polling" else 1
    process = start_process(*judge(service, run.folder), "--concurrency", 3)
    deadline = time.monotonic() + 30

    def reached() -> bool:
        if isinstance(moment, int):
            return service.total >= moment
        return len(service.files) >= (1 if moment == "first upload" else 4)

    while not reached() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert reached()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    time.sleep(0.1)  # let the server finish what it was at
    finished = {line["request"] for line in answers(run) if line["scores"]}
    sent = {line["request"] for line in read_lines(run.folder, "judgements") if line["kind"] == "sent"}
    before = service.total
    lost = before - len(answers(run))
    assert 0 <= lost <= 3 and lost <= len(sent - finished)
    service.polls = 1

    done = start_process(*judge(service, run.folder), "--concurrency", 3)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert len(scores.collect(run)[0].scores) == 16
    # Every item is paid for once, and the few whose answer died with the process once more.
    assert service.total == 16 + lost
    again = {line["request"] for line in answers(run)[len(finished) :]}
    assert not again & finished
    # What the killed process had uploaded and written down is gone; the service forgets the rest after two days.
    noted = {line["name"] for line in read_lines(run.folder, "judgements") if line["kind"] == "upload"}
    assert not noted & {f"files/{name}" for name in service.files} and len(service.files) <= 3
    if lost:
        assert "were on their way" in err


def test_ctrl_c_waits_for_what_is_paid(service: Service, openve_run: runs.Run) -> None:
    service.pace = 0.4
    process = start_process(*judge(service, openve_run.folder), "--concurrency", 2)
    deadline = time.monotonic() + 120
    while not service.total and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert len(answers(openve_run)) == service.total < 8


def test_openai_frames_and_video(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    assert kiwi(*judge(service, openve_run.folder, *openai(service)), "--limit", 1)[0] == 0
    body = service.bodies[-1]
    assert body["messages"][0]["role"] == "system"
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "image_url", "text", "image_url", "image_url"]
    assert body["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert kiwi(*judge(service, openve_run.folder, *openai(service, "--judge-media", "video")), "--limit", 1)[0] == 0
    kinds = [part["type"] for part in service.bodies[-1]["messages"][1]["content"]]
    assert kinds == ["text", "video_url", "text", "video_url"]
    # Shown otherwise, it is another judge.
    assert len(scores.collect(openve_run)) == 2


def test_the_reference_comes_first(kiwi: Kiwi, service: Service, tmp_path: Path, refvie_data: Path) -> None:
    run = edited_run(tmp_path / "run", "refvie", refvie_data)
    assert kiwi(*judge(service, run.folder, benchmark="refvie"), "--concurrency", 1)[0] == 0
    assert all(len(body["contents"][0]["parts"]) == 3 for body in service.bodies)
    wanted = [
        [hash_media(path) for path in (run.reference(i), run.source(i), run.edited(i)) if path] for i in run.items
    ]
    assert service.media == wanted and service.total == 3
    names = {line["category"]: list(line["scores"]) for line in answers(run)}
    assert names == {
        "subject": ["Likeness", "Steadiness", "Integration"],
        "background": ["Backdrop", "Cut-out", "Harmony"],
    }


def test_the_openve_protocol_puts_the_rubric_first(
    kiwi: Kiwi, service: Service, openve_run: runs.Run, tmp_path: Path
) -> None:
    script = tmp_path / "rubrics.py"
    script.write_text(SCRIPT)
    types = [word for name in ("global_style", "local_add") for word in ("--category", name)]
    more = ("--protocol", "openve", "--rubrics", script, *types)
    service.faults = ["malformed"] * 4  # of five tries
    assert kiwi(*judge(service, openve_run.folder), "--concurrency", 1, *more)[0] == 0
    assert service.total == 6
    for body in service.bodies:
        parts = body["contents"][0]["parts"]
        assert [next(iter(part)) for part in parts] == ["text", "fileData", "fileData"]
        assert "systemInstruction" not in body and body["generationConfig"]["temperature"] == 0.7
        assert body["contents"][0]["role"] == "user" and "Did It" in parts[0]["text"]
    line = answers(openve_run)[-1]
    assert line["asked"] == "gemini-2.5-pro-preview-05-06" and line["temperature"] == 0.7


def test_pictures_are_judged(kiwi: Kiwi, service: Service, tmp_path: Path, imgedit_data: Path) -> None:
    run = edited_run(tmp_path / "run", "imgedit", imgedit_data)
    assert kiwi(*judge(service, run.folder, benchmark="imgedit"))[0] == 0
    assert kiwi(*judge(service, run.folder, *openai(service), benchmark="imgedit"))[0] == 0
    assert service.total == 6


def test_concurrency_and_rate(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    service.pace = 0.1
    assert kiwi(*judge(service, openve_run.folder), "--concurrency", 3)[0] == 0
    assert service.most_busy == 3
    service.pace = 0.0
    begin = time.monotonic()
    assert kiwi(*judge(service, openve_run.folder, *openai(service)), "--limit", 4, "--rate", 600)[0] == 0
    assert time.monotonic() - begin >= 0.3  # four questions, a tenth of a second apart


def test_two_processes_do_not_judge_the_same_run(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    from kiwi_cli.bench.judges.ledger import Ledger

    with Ledger(openve_run.folder):
        code, _, err = kiwi(*judge(service, openve_run.folder))
    assert code == 2 and "another process is writing" in err and service.total == 0
    for part in ("1/2", "2/2"):
        assert kiwi(*judge(service, openve_run.folder), "--shard", part)[0] == 0
    assert service.total == 8 and len(scores.collect(openve_run)[0].scores) == 8


def test_items_without_a_result_are_left_and_said(
    kiwi: Kiwi, service: Service, tmp_path: Path, openve_data: Path
) -> None:
    run = edited_run(tmp_path / "run", "openve", openve_data, skip=("local_add",))
    code, out, err = kiwi(*judge(service, run.folder), "--json")
    assert code == 0 and "not judged: 1 item" in err
    assert len(json.loads(out)["judged"]["unedited"]) == 1 and service.total == 7


def test_dry_run_asks_nothing(
    kiwi: Kiwi, service: Service, openve_run: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    code, _, err = kiwi(*judge(service, openve_run.folder), "--dry-run", "--price", "1/10")
    assert code == 0 and "judging 8 items by 'gemini-3-flash-preview'" in err and "0.15 dollars" in err
    assert service.total == 0 and not (openve_run.folder / "judgements.jsonl").exists()


def test_protocols_are_as_documented() -> None:
    kiwi_, authors = find_protocol("kiwi", "openve"), find_protocol("openve", "openve")
    assert (kiwi_.model, kiwi_.temperature, kiwi_.place, kiwi_.tries) == ("gemini-2.5-pro", None, "system", 3)
    assert (authors.model, authors.temperature, authors.place, authors.tries) == (
        "gemini-2.5-pro-preview-05-06",
        0.7,
        "first",
        5,
    )
    assert find_protocol("kiwi", "refvie").model == "gemini-3-flash-preview"
