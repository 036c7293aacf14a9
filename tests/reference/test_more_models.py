"""EditScore's questions with our parser, FLUX.2 Klein and Qwen3-VL: real classes at tiny size, random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli.data.reference import asking, editscore, painting
from kiwi_cli.data.reference.files import Unusable, place_of
from kiwi_cli.data.reference.recipe import Make, Recipe, drawn
from kiwi_cli.data.reference.running import Going, go_through
from kiwi_cli.data.reference.triplets import read_triplets
from kiwi_cli.errors import UsageError

from ..conftest import CHECKPOINT, random_frames
from . import planted
from .test_asking import server

PROMPTS = """
_context_no_delimit_reasoning_first = "Answer in JSON."
_prompts_0shot_two_image_edit_rule = "Two pictures."
_prompts_0shot_tie_rule_SC = "From 0 to 10, two scores. Instruction: <instruction>"
_prompts_0shot_rule_PQ = "From 0 to 10, natural and whole."
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name, which does harm when it is imported."""
    folder = tmp_path / "site" / "editscore"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('not to be imported')")
    (folder / "vie_prompts.py").write_text(PROMPTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def scored(url: str) -> Recipe:
    return replace(drawn(), score=replace(drawn().score, by="endpoint", questions="editscore", model="judge", url=url))


def said(*scores: Any) -> dict[str, Any]:
    return {"reasoning": "as it is", "score": list(scores)}


def test_a_pair_is_scored_as_editscore_does(package: Path, tmp_path: Path) -> None:
    table, _ = planted.drawn(tmp_path / "rows", 1, kinds=("change",))
    rows = list(read_triplets(table))
    answers = [said(25, 20), said(22.5, 24), said(20, 25), said(25, 25), said(25, 25), said(20, 20)]
    with server(answers) as (url, asked):
        standing, _ = go_through(tmp_path / "out", rows, scored(url), Going(stages=("read", "score")))
    kept = json.loads((tmp_path / "out" / place_of("score", rows[0].key, ".json")).read_text())["figures"]
    overall = (8 * 9) ** 0.5 + (8 * 10) ** 0.5 + (10 * 8) ** 0.5
    assert kept == {
        "following": pytest.approx(28 / 3, abs=1e-3),
        "consistency": pytest.approx(28 / 3, abs=1e-3),
        "quality": 9.0,
        "overall": pytest.approx(overall / 3, abs=1e-3),
    }
    assert [len(body["messages"][0]["content"]) - 1 for body in asked] == [2, 1] * 3  # pictures
    words = asked[0]["messages"][0]["content"][-1]["text"]
    assert words.startswith("Answer in JSON.\nTwo pictures.\nFrom 0 to 25") and rows[0].prompt in words
    assert standing.failed == {} and standing.dropped == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12.5",
        '{"reasoning": "so", "score": []}',
        '{"reasoning": "so", "score": [12]}',
        '{"reasoning": "so", "score": [12, 26]}',
        '{"reasoning": "so", "score": [12, -1]}',
        '{"reasoning": "so", "score": ["12", 12]}',
        '{"reasoning": "so", "score": 12}',
        '{"reasoning": "so", "score": [12, 12]',
        'Well: {"reasoning": "so", "score": [12, 12]}',
    ],
)
def test_an_answer_that_cannot_be_read_is_no_middle_score(text: str) -> None:
    with pytest.raises(Unusable):
        editscore.scores_in(text, 2)


def test_a_failed_answer_drops_the_row(package: Path, tmp_path: Path) -> None:
    table, _ = planted.drawn(tmp_path / "rows", 1, kinds=("change",))
    with server([said(25, 25), "I'm sorry, but I can't assist with that request."]) as (url, _):
        standing, _ = go_through(tmp_path / "out", list(read_triplets(table)), scored(url), Going())
    ((stage, reason),) = standing.dropped.values()
    assert stage == "score" and reason.startswith("the answer cannot be read")


def test_nothing_of_the_package_is_run(package: Path) -> None:
    (package / "vie_prompts.py").write_text(f"{PROMPTS}\nraise SystemExit('run')")
    assert editscore.prompts()["pair"].count("<instruction>") == 1


def test_a_package_that_is_not_there_or_another_is_said(package: Path) -> None:
    (package / "vie_prompts.py").write_text("_prompts_0shot_rule_PQ = 3")
    with pytest.raises(UsageError, match="it is another version"):
        editscore.prompts()
    (package / "vie_prompts.py").unlink()
    with pytest.raises(UsageError, match="not installed"):
        editscore.prompts()


def klein(folder: Path) -> Path:
    """A pipeline of the real classes: 28 layers, for the prompt is taken from the 27th too."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
    from diffusers import Flux2Transformer2DModel as Transformer
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT / "processor")
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2(**sizes, **kinds, sample_size=32),
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
        transformer=Transformer(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_klein_paints(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    make = Make(background="flux2-klein", model=str(klein(tmp_path / "model")), steps=2)
    paint = painting.make_painter(make, "cpu")
    frame = random_frames(1, 64, 96, 0)[0]
    made = paint(frame, np.zeros((64, 96), bool), "the ball")
    assert made.size == (96, 64) and made.mode == "RGB"
    assert np.array_equal(np.asarray(made), np.asarray(paint(frame, np.zeros((64, 96), bool), "the ball")))
    assert not np.array_equal(np.asarray(made), np.asarray(paint(frame, np.zeros((64, 96), bool), "a red hat")))


def qwen3(folder: Path) -> str:
    from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    known = json.loads((CHECKPOINT / "processor" / "qwen_config.json").read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT / "processor")
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": known.get("vocab_size") or known["text_config"]["vocab_size"],
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(CHECKPOINT / "processor" / "preprocessor_config.json", folder)
    look = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**look, "patch_size": 16}))
    return str(folder)


def test_qwen3_vl_answers_and_what_it_rambles_drops_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    monkeypatch.setattr(asking, "NEW_TOKENS", 4)
    table, _ = planted.drawn(tmp_path / "rows", 1, kinds=("change",))
    recipe = replace(drawn(), score=replace(drawn().score, by="local", model=qwen3(tmp_path / "model")))
    standing, _ = go_through(tmp_path / "out", list(read_triplets(table)), recipe, Going(device="cpu"))
    ((stage, reason),) = standing.dropped.values()
    assert stage == "score" and reason.startswith("the answer cannot be read"), reason
