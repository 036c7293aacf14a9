"""A tiny random Qwen2.5-VL as the judge: its words mean nothing, the way to them is the real one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.bench import run
from kiwi_cli.bench.judges.judging import build_request
from kiwi_cli.bench.judges.local import LocalJudge
from kiwi_cli.bench.judges.protocols import find_protocol
from kiwi_cli.bench.judges.rubrics import house_rubric
from kiwi_cli.errors import CheckpointError

from ..conftest import CHECKPOINT
from .conftest import Kiwi


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the released layout, with the small checkpoint's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen")
    given: dict[str, Any] = json.loads((CHECKPOINT / "processor" / "qwen_config.json").read_text())
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(**given)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT / "processor")
    config.eos_token_id = config.text_config.eos_token_id = None
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(CHECKPOINT / "processor" / "preprocessor_config.json", folder)
    return folder


def test_it_sees_every_frame_and_answers(qwen: Path, openve_run: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi_cli.bench.judges.local.NEW_TOKENS", 5)
    judge = LocalJudge(str(qwen), "cpu", "float32")
    request = build_request(
        openve_run, openve_run.items[0], find_protocol("house", "openve"), house_rubric("video"), judge
    )
    prepared = judge.prepare(request, None)
    assert [(label, len(frames)) for label, frames in prepared] == [("Original", 2), ("After the edit", 2)]
    answer = judge.ask(request, prepared)
    assert answer.answered_by == str(qwen) and answer.output_tokens == 5 and answer.finish == "length"
    assert answer.input_tokens is not None and answer.input_tokens > 100
    assert judge.ask(request, prepared) == answer  # greedy: the same question has the same answer


def test_in_a_run(kiwi: Kiwi, qwen: Path, openve_run: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi_cli.bench.judges.local.NEW_TOKENS", 5)
    answer = "Why: so.\nInstruction: 4\nPreservation: 3\nQuality: 2"
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.decode", lambda *_, **__: answer, raising=True)
    code, out, err = kiwi(
        *("bench", "openve", "--stage", "judge", "--out", openve_run.folder, "--judge", "local"),
        *("--judge-model", qwen, "--device", "cpu", "--limit", 2, "--json"),
    )
    assert code == 0, err
    data = json.loads(out)["judged"]
    assert data["scored"] == 2 and data["answered_by"] == {str(qwen): 2}
    assert "dollars" not in err and "1 questions at once" in err


def test_not_a_judge(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load the judge"):
        LocalJudge(str(tmp_path), "cpu")
