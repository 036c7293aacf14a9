"""A judge that is busy, broken, unreadable, unpaid or asked wrongly: what is tried again, and what is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kiwi_cli.bench import run as runs

from .conftest import Kiwi
from .judge_server import KEY, Service
from .judging import answers, judge, openai

pytest.importorskip("google.genai", reason="needs google-genai: pip install 'kiwi-cli[judge-gemini]'")

pytest.importorskip("openai", reason="needs openai: pip install 'kiwi-cli[judge-openai]'")

FAULTS: dict[str, list[Any]] = {
    "busy": [429, (429, {"Retry-After": "0"}), 503],
    "failing": [500, 502, 408],
    "silent": ["hang"],
    "cut": ["cut", "cut"],
    "unreadable": ["malformed", "partial"],  # one fewer than there are tries: one item may get them all
    "empty": ["empty", "empty"],
    "broken json": ["broken json"],
    "bold": ["bold", "bold"],
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("backend", ["gemini", "openai"])
def test_trouble_passes(kiwi: Kiwi, service: Service, openve_run: runs.Run, name: str, backend: str) -> None:
    service.faults = list(FAULTS[name])
    more = openai(service) if backend == "openai" else ()
    code, out, err = kiwi(*judge(service, openve_run.folder, *more), "--limit", 4, "--json")
    assert code == 0, err
    data = json.loads(out)["judged"]
    assert data["scored"] == 4 and not service.faults
    # Unreadable answers are paid for and kept; nothing else is paid for twice.
    extra = {"unreadable": 2, "empty": 2, "broken json": 1}.get(name, 0)
    assert service.total == 4 + extra
    assert len(answers(openve_run)) == 4 + (2 if name in ("unreadable", "empty") else 0)


@pytest.mark.parametrize("backend", ["gemini", "openai"])
def test_what_cannot_be_read_three_times_is_a_failure_not_a_score(
    kiwi: Kiwi, service: Service, openve_run: runs.Run, backend: str
) -> None:
    service.faults = ["malformed", "partial", "malformed"]
    more = openai(service) if backend == "openai" else ()
    command = (*judge(service, openve_run.folder, *more), "--concurrency", 1)
    code, _, err = kiwi(*command)
    assert code == 1 and "1 item failed" in err
    assert service.total == 7 + 3
    code, _, err = kiwi(*command)  # again: it stays a failure, and nothing is paid
    assert code == 1 and "3 answers could not be read" in err and service.total == 10
    assert kiwi(*command, "--retry-failed")[0] == 0
    assert service.total == 11


def test_upload_trouble(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    service.upload_faults = [500, None, "failed", 503]
    service.polls = 2
    code, _, err = kiwi(*judge(service, openve_run.folder), "--concurrency", 1)
    assert code == 1 and "could not read an uploaded file" in err
    assert service.total == 7 and not service.files
    assert kiwi(*judge(service, openve_run.folder))[0] == 0 and service.total == 8


BAD: dict[str, tuple[dict[str, str | None], tuple[str, ...], int, str]] = {
    "no key": ({"GEMINI_API_KEY": None}, (), 2, "no API key for Gemini"),
    "refused key": ({"GEMINI_API_KEY": "wrong"}, (), 1, "Gemini refuses the key"),
    "unknown judge": ({}, ("--judge", "oracle"), 2, "unknown --judge: 'oracle'"),
    "unknown protocol": ({}, ("--protocol", "refvie"), 2, "openve has no protocol 'refvie'"),
    "no concurrency": ({}, ("--concurrency", "0"), 2, "--concurrency must be at least 1, not 0"),
    "price": ({}, ("--price", "cheap"), 2, "price not understood: 'cheap'"),
    "rubrics with house": ({}, ("--rubrics", "x.py"), 2, "--rubrics does not go with --protocol house"),
    "openve without rubrics": ({}, ("--protocol", "openve"), 2, "have no fixed place"),
    "unknown category": ({}, ("--category", "local_paint"), 2, "unknown category: 'local_paint'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    kiwi: Kiwi, service: Service, openve_run: runs.Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment, more, expected, words = BAD[name]
    for key, value in environment.items():
        if value is None:
            monkeypatch.delenv(key)
        else:
            monkeypatch.setenv(key, value)
    code, out, err = kiwi(*judge(service, openve_run.folder), *more)
    assert code == expected and out == "" and words in err and err.count("error: ") == 1
    assert "Traceback" not in err and service.total == 0


def test_openai_key_refused_and_model_unknown(
    kiwi: Kiwi, service: Service, openve_run: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_JUDGE_KEY", "wrong")
    code, _, err = kiwi(*judge(service, openve_run.folder, *openai(service)))
    assert code == 1 and "the judge refuses the key" in err
    monkeypatch.setenv("KIWI_JUDGE_KEY", KEY)
    unknown = {"error": {"message": "The model `qwen-judge` does not exist", "code": "model_not_found"}}
    service.faults = [(404, unknown)] * 8
    code, _, err = kiwi(*judge(service, openve_run.folder, *openai(service)), "--concurrency", 1)
    assert code == 1 and "the judge has no model 'qwen-judge'" in err and service.total == 0
    assert len(service.faults) == 7  # one refusal ends the run


def test_a_wrong_address_is_not_called_an_unknown_model(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    options = ("--judge", "openai", "--judge-url", f"{service.url}/v2/api", "--judge-model", "qwen-judge")
    service.faults = [404] * 8
    code, _, err = kiwi(*judge(service, openve_run.folder, *options))
    assert code == 1 and f"nothing answers at '{service.url}/v2/api/chat/completions'" in err and "/v1" in err
    code, _, err = kiwi(*judge(service, openve_run.folder))
    assert code == 1 and "nothing answers like Gemini" in err and "--judge-url" in err


QUOTA = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
DAY = {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [{"quotaId": "RequestsPerDay"}]}


@pytest.mark.parametrize(
    ("backend", "fault"),
    [
        ("openai", (429, {"error": QUOTA})),
        ("openai", (402, {"error": {"message": "Insufficient Balance"}})),
        ("gemini", (429, {"error": DAY})),
    ],
    ids=["no quota", "payment required", "the day's quota"],
)
def test_an_empty_account_ends_the_run_at_once(
    kiwi: Kiwi, service: Service, openve_run: runs.Run, backend: str, fault: Any
) -> None:
    service.faults = [fault] * 9
    more = openai(service) if backend == "openai" else ()
    code, _, err = kiwi(*judge(service, openve_run.folder, *more), "--concurrency", 1)
    assert code == 1 and ("no credit left" in err or "quota of the day" in err) and "kept" in err
    assert len(service.faults) == 8  # it is not tried again


def test_an_answer_without_its_parts_is_kept_and_asked_again(
    kiwi: Kiwi, service: Service, openve_run: runs.Run
) -> None:
    service.faults = ["null message", "parts"]
    code, out, err = kiwi(
        *judge(service, openve_run.folder, *openai(service)), "--limit", 2, "--concurrency", 1, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["judged"]["scored"] == 2 and service.total == 3
    assert [bool(line["scores"]) for line in answers(openve_run)] == [False, True, True]  # what was paid for is kept


def test_no_key_is_stored_or_printed(kiwi: Kiwi, service: Service, openve_run: runs.Run) -> None:
    service.faults = [500, "malformed"]
    _, out, err = kiwi(*judge(service, openve_run.folder))
    kept = b"".join(path.read_bytes() for path in openve_run.folder.glob("*.json*"))
    assert KEY not in out + err and KEY.encode() not in kept
