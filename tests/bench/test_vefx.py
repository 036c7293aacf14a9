"""VEFX-Reward as a judge, on a tiny random Qwen3-VL with its head: the way to its scores is the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli.bench import run
from kiwi_cli.bench.judges import vefx
from kiwi_cli.bench.judges.parse import parse_scores
from kiwi_cli.bench.judges.vefx import VefxJudge, expected_score, first_size, frame_count, patches
from kiwi_cli.errors import CheckpointError, MediaError, UsageError

from .conftest import Kiwi

TEXT = '''"""Not run."""
raise SystemExit
A = """Judge the edit "{text_prompt}".
Following: <|IF_reward|>
Quality: <|RQ_reward|>
Exclusivity: <|EE_reward|>"""
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "prompt_template.py").write_text(TEXT)
    return tmp_path / "prompt_template.py"


def save(folder: Path, head: bool = True) -> Path:
    """A random model in the released layout."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|video_pad|>", "<|image_pad|>", *vefx.TOKENS.values()]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    number = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        video_token_id=number("<|video_pad|>"),
        image_token_id=number("<|image_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    if head:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {"rm_head.weight": torch.randn(3, 32)}, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("vefx"))


def test_a_run_is_judged_on_a_scale_of_its_own(kiwi: Kiwi, model: Path, script: Path, openve_run: run.Run) -> None:
    command = ("bench", "openve", "--stage", "judge", "--out", openve_run.folder, "--judge", "vefx")
    options = ("--protocol", "vefx", "--judge-model", model, "--rubrics", script, "--device", "cpu", "--limit", 2)
    code, out, err = kiwi(*command, *options, "--json")
    assert code == 0, err
    data = json.loads(out)["judged"]
    assert data["scored"] == 2 and data["answered_by"] == {str(model): 2} and "dollars" not in err
    assert kiwi("bench", "report", openve_run.folder, "-q")[0] == 0
    (row,) = json.loads((openve_run.folder / "report/report.json").read_text())["benchmarks"][0]["rows"]
    assert (row["protocol"], row["scale"], row["judge"]) == ("vefx", [1, 4], str(model))
    assert row["rubric"].startswith("file-") and 1 < row["headline"]["value"] < 4
    assert {entry["name"] for entry in row["dimensions"]} == set(vefx.TOKENS)
    text = (openve_run.folder / "report/report.md").read_text()
    assert "), 1 to 4 |" in text
    assert "Your runs, overall, from 1 to 4" in (openve_run.folder / "report/report.html").read_text()


def test_the_same_clips_have_the_same_scores_and_others_others(model: Path, script: Path, openve_run: run.Run) -> None:
    from kiwi_cli.bench.judges.judging import build_request
    from kiwi_cli.bench.judges.protocols import find_protocol

    judge, protocol = VefxJudge(str(model), "cpu", "float32"), find_protocol("vefx", "openve")
    answers = []
    for item in (*openve_run.items[:2], openve_run.items[0]):
        request = build_request(openve_run, item, protocol, vefx.authors_text(script), judge)
        assert item.instruction in request.rubric and "{text_prompt}" not in request.rubric
        prepared = judge.prepare(request, None)
        assert [len(frames) for frames, _ in prepared] == [4, 4] and prepared[0][1] == [0.0, 1 / 8, 3 / 8, 4 / 8]
        answers.append(judge.ask(request, prepared).text)
    assert answers[0] == answers[2] != answers[1]
    scores, problem = parse_scores(answers[0], tuple(vefx.TOKENS), (1, 4), whole=False)
    assert scores is not None and problem == "" and all(1 <= value <= 4 for value in scores.values())


def test_scores_are_expected_values_of_steps() -> None:
    import torch

    assert expected_score(torch.tensor([-50.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert expected_score(torch.tensor([50.0, 50.0, 50.0])) == pytest.approx(4.0)
    assert expected_score(torch.tensor([0.0, 0.0, 0.0])) == pytest.approx(1 + 0.5 + 0.25 + 0.125)


def test_frames_are_chosen_and_sized_as_the_authors_do() -> None:
    clips = {(81, 24.0): 14, (81, 16.0): 20, (5, 8.0): 4, (3, 8.0): 2, (600, 30.0): 80}
    assert {clip: frame_count(*clip) for clip in clips} == clips
    with pytest.raises(MediaError, match="two frames and more"):
        frame_count(1, 8.0)
    assert first_size(704, 1280) == (448, 840) and first_size(64, 64) == (336, 336)
    assert first_size(480, 832) == (476, 812)


def test_patches_are_those_of_the_library() -> None:
    """Laid out as its own video processor lays them, which needs torchvision for all else that it does."""
    import torch
    from PIL import Image
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    frames = [np.random.default_rng(k).integers(0, 255, (320, 320, 3), dtype=np.uint8) for k in range(4)]
    found, grid = patches(frames, Qwen3VLVisionConfig())
    assert grid == (2, 20, 20) and found.shape == (800, 1536)
    height, width = first_size(320, 320)
    sized = [np.asarray(Image.fromarray(frame).resize((width, height), 3).resize((320, 320), 3)) for frame in frames]
    clip = torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2).float() / 127.5 - 1
    library: Any = Qwen3VLVideoProcessor
    expected, *theirs = library.patchify(None, clip[None], 16, 2, 2)
    assert tuple(theirs) == grid and torch.equal(found, expected[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [("x = 1", "no text with"), ("def", "cannot read the text"), (TEXT.replace("{text_prompt}", "it"), "no text with")],
)
def test_a_file_without_the_text(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(UsageError, match=words):
        vefx.authors_text(tmp_path / "a.py")


def test_it_goes_with_its_own_protocol_and_file(kiwi: Kiwi, openve_run: run.Run) -> None:
    command: tuple[Any, ...] = ("bench", "openve", "--stage", "judge", "--out", openve_run.folder)
    for more, words in (
        (("--judge", "vefx"), "--judge vefx and --protocol vefx go together"),
        (("--protocol", "vefx"), "--judge vefx and --protocol vefx go together"),
        (("--judge", "vefx", "--protocol", "vefx"), "protocol 'vefx' needs its authors' text"),
    ):
        code, _, err = kiwi(*command, *more)
        assert code == 2 and words in err, err


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no rm_head\.weight"):
        VefxJudge(str(save(tmp_path / "headless", head=False)), "cpu")
    with pytest.raises(CheckpointError, match="cannot load the judge"):
        VefxJudge(str(tmp_path), "cpu")
