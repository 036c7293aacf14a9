"""The judge's command line against a service on loopback, and what it kept of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kiwi_cli.batch.journal import read_lines
from kiwi_cli.bench import run as runs

from .judge_server import Service


def judge(service: Service, folder: Path, *more: Any, benchmark: str = "openve") -> tuple[Any, ...]:
    backend = () if "--judge" in more else ("--judge-url", service.url)
    return (
        *("bench", benchmark, "--stage", "judge", "--out", folder, *backend),
        *("--retry-wait", "0.02", "--judge-timeout", "2", *more),
    )


def openai(service: Service, *more: Any) -> tuple[Any, ...]:
    return ("--judge", "openai", "--judge-url", f"{service.url}/v1", "--judge-model", "qwen-judge", *more)


def answers(run: runs.Run) -> list[dict[str, Any]]:
    return [record for record in read_lines(run.folder, "judgements") if record["kind"] == "answer"]
