"""Cached rows as samples: the prompt is the pipeline's own, and so is the context it gives."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.data.encode import Encoder, vision_digest
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.data.shards import CacheError
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError
from kiwi_cli.model.prompt import QUERY_TOKEN, VISION_END, VISION_START, MLLMInputs
from kiwi_cli.train.batch import Bucket, Prompt, collate
from kiwi_cli.train.dataset import CachedRows, PromptBuilder, model_inputs
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.sampler import Sampler

from ..conftest import CHECKPOINT, random_frames

PROMPTS = ("Make it snow", "Put the hat of the reference on the man, and make it blue.", "夜にする", "a", "Remove it")


def edits() -> list[Item]:
    """All three modes, a reference on a single frame among them, and one row held out."""
    rows = []
    for number, prompt in enumerate(PROMPTS):
        source = random_frames(1 if number in (2, 3) else 5, 64, 96, seed=number)
        reference = Image.fromarray(random_frames(1, 50, 80, seed=number)[0]) if number in (1, 3) else None
        mask = np.zeros(source.shape[:3], bool)
        mask[:, :32, :32] = True
        rows.append(
            Item(
                source, 255 - source, prompt, reference, mask if number < 2 else None, kind="x" * number, split="train"
            )
        )
    return [*rows, Item(rows[0].source, rows[1].source, "held out", split="held_out")]


@pytest.fixture(scope="session")
def cache(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "edits"
    write_cache(out, edits(), Encoder.from_pipeline(loaded), reference_views=3)
    return out


@pytest.fixture
def rows(loaded: Any, cache: Path) -> CachedRows:
    return CachedRows(cache, loaded.inputs)


def prompt_of(pipe: Any, item: Item) -> MLLMInputs:
    return pipe.inputs(item.source, item.prompt, [item.reference] if item.reference is not None else [])


def context_of(pipe: Any, prompt: Prompt) -> torch.Tensor:
    """The instruction encoder's own work on cached features, without its vision tower."""
    tokens = [pipe.inputs.token_id(token) for token in (QUERY_TOKEN, VISION_START, VISION_END)]
    ids, positions = prompt.input_ids[None], prompt.position_ids[:, None]
    return pipe.mllm_encoder.read(prompt.mode, ids, positions, prompt.vision, tuple(tokens))


@pytest.mark.parametrize("number", range(5))
def test_the_prompt_is_the_input_builders(loaded: Any, rows: CachedRows, number: int) -> None:
    whole, prompt = prompt_of(loaded, edits()[number]), rows[number].prompt
    assert prompt.mode == whole.mode
    assert torch.equal(prompt.input_ids, whole.input_ids[0])
    assert torch.equal(prompt.position_ids, whole.position_ids[:, 0])
    assert prompt.input_ids.dtype == prompt.position_ids.dtype == torch.int64
    pads = [loaded.inputs.token_id(token) for token in ("<|video_pad|>", "<|image_pad|>")]
    assert len(prompt.vision) == int(torch.isin(prompt.input_ids, torch.tensor(pads)).sum())


@pytest.mark.parametrize("number", range(5))
def test_the_context_is_the_pipelines(loaded: Any, rows: CachedRows, number: int) -> None:
    item = edits()[number]
    references = [item.reference] if item.reference is not None else []
    wanted = loaded.encode_instruction(item.source, item.prompt, references)
    context = context_of(loaded, rows[number].prompt)
    torch.testing.assert_close(context, wanted, rtol=0, atol=1e-5)
    # It does see the clip: with another row's features it is another context.
    mixed = Prompt(
        rows[number].prompt.mode, *list(vars(rows[number].prompt).values())[1:3], rows[number].prompt.vision.flip(0)
    )
    assert not torch.allclose(context_of(loaded, mixed), wanted, atol=1e-4)


@torch.no_grad()
def test_a_batch_of_samples_gives_the_pipelines_contexts(loaded: Any, rows: CachedRows) -> None:
    """Rows 0 and 4 share a bucket and have prompts of different lengths."""
    model = KiwiTrainModel(
        loaded.transformer, loaded.mllm_encoder, loaded.source_embedder, loaded.ref_embedder, loaded.tokenizer
    )
    samples = [rows[0], rows[4]]
    assert len({len(sample.prompt.input_ids) for sample in samples}) == 2
    contexts = model.context(collate(samples, [0, 1], seed=0))
    for context, number in zip(contexts, (0, 4), strict=True):
        item = edits()[number]
        wanted = loaded.encode_instruction(item.source, item.prompt)[0]
        torch.testing.assert_close(context, wanted, rtol=0, atol=1e-5)


def test_a_sample_has_what_its_row_has(loaded: Any, rows: CachedRows) -> None:
    assert len(rows) == 5
    assert [rows.prompt(number) for number in range(5)] == list(PROMPTS)
    assert [rows.kind(number) for number in range(5)] == ["x" * number for number in range(5)]
    for number, item in enumerate(edits()[:5]):
        sample = rows[number]
        torch.testing.assert_close(sample.source, loaded.encode_source(item.source)[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(sample.target, loaded.encode_source(item.target)[0], rtol=0, atol=2e-5)
        assert (sample.references is None) == (item.reference is None)
        assert sample.weight is None


def test_buckets_are_what_a_batch_must_share(rows: CachedRows) -> None:
    # 80x50 is shown to the language model as 84x56, which is 3x2 tokens.
    assert rows.buckets == [
        Bucket("video", 2, 4, 6, 0, 0),
        Bucket("reference", 2, 4, 6, 1, 6),
        Bucket("image", 1, 4, 6, 0, 0),
        Bucket("reference", 1, 4, 6, 1, 6),
        Bucket("video", 2, 4, 6, 0, 0),
    ]
    for number, bucket in enumerate(rows.buckets):
        sample = rows[number]
        assert rows.bucket(number) == bucket
        assert sample.target.shape == sample.source.shape == (48, bucket.frames, bucket.height, bucket.width)
    assert rows.bucket(0) is rows.bucket(4)
    batches = Sampler({"a": rows.buckets}, {"a": 1.0}, 2, 0)
    assert all(len({rows.bucket(row) for _, row in batches.batch(step)}) == 1 for step in range(20))


def test_the_position_in_the_run_draws_a_view_of_the_reference(rows: CachedRows) -> None:
    first = rows[1].references
    drawn = [rows.sample(1, position).references for position in range(60)]
    assert all(view.shape == first.shape == (48, 1, 4, 6) for view in drawn)
    assert torch.equal(rows.sample(1, 7).references, drawn[7])
    views = [first]
    for view in drawn:
        if not any(torch.equal(view, other) for other in views):
            views.append(view)
    assert len(views) == 3
    # Every fourth position has all of them too: a row that comes at a fixed distance is not stuck with one.
    assert {next(k for k, v in enumerate(views) if torch.equal(v, view)) for view in drawn[::4]} == {0, 1, 2}


def test_weights_have_mean_1_and_the_stated_strength(loaded: Any, cache: Path) -> None:
    weighted = CachedRows(cache, loaded.inputs, weight_strength=4.0)
    weight = weighted[0].weight
    assert weight.shape == (2, 4, 6)
    assert weight.dtype == torch.float32
    assert float(weight.mean()) == pytest.approx(1.0)
    inside, outside = weight[:, :2, :2], weight[:, 2:, 2:]  # 32 pixels are two latent positions
    assert torch.allclose(inside / outside[0, 0, 0], torch.tensor(5.0))
    assert torch.all(outside == outside[0, 0, 0])
    assert weighted[2].weight is None  # no mask
    with pytest.raises(UsageError):
        CachedRows(cache, loaded.inputs, weight_strength=-1.0)


def test_held_out_rows_are_apart(rows: CachedRows) -> None:
    assert len(rows.held_out) == 1
    assert rows.held_out.prompt(0) == "held out"
    assert rows.held_out.split == "held_out"
    assert torch.equal(rows.held_out[0].source, rows[0].source)
    assert "held out" not in [rows.prompt(number) for number in range(len(rows))]


def test_samples_do_not_touch_the_files(rows: CachedRows, cache: Path) -> None:
    before = rows[0].target.clone()
    rows[0].target.zero_()
    assert torch.equal(CachedRows(cache, rows._prompts.inputs)[0].target, before)


def test_it_goes_to_a_worker_process(rows: CachedRows) -> None:
    rows[0]
    shards = pickle.loads(pickle.dumps(rows._shards))  # noqa: S301 (made a line ago, as a worker process is given it)
    place = rows._place("target", 0)
    assert torch.equal(shards.tensor(place), rows[0].target)


def test_the_prompt_builder_of_a_folder_needs_no_weights(loaded: Any, tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    inputs = model_inputs(tmp_path / "model")
    assert (inputs.queries, inputs.geometry, inputs.bounds) == (
        loaded.inputs.queries,
        loaded.inputs.geometry,
        loaded.inputs.bounds,
    )
    frames = random_frames(5)
    assert torch.equal(inputs(frames, "go").input_ids, loaded.inputs(frames, "go").input_ids)


def test_instructions_are_checked_like_the_pipelines(loaded: Any) -> None:
    with pytest.raises(UsageError, match="reserved token"):
        PromptBuilder(loaded.inputs)("video", "a <|im_end|> b", [(2, 4, 4)], torch.zeros(8, 4))


def test_a_cache_of_another_model_is_refused(loaded: Any, rows: CachedRows) -> None:
    rows.check_model(vision_digest(loaded.mllm_encoder, loaded.inputs))
    other = random_pipeline("small", torch.device("cpu"), torch.float32, seed=5)
    with pytest.raises(CheckpointError, match="another model's vision tower"):
        rows.check_model(vision_digest(other.mllm_encoder, other.inputs))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: shutil.rmtree(out), "no cache in"),
        (lambda out: (out / "index.json").unlink(), "is not complete"),
        (lambda out: (out / "index.json").write_text("{"), "cannot read"),
        (lambda out: (out / "index.json").write_text('{"format": 99}'), "no index of this version"),
        (lambda out: next(out.glob("shard-*")).unlink(), "lacks 'latents."),
        (lambda out: next(out.glob("shard-*")).write_bytes(b"x" * 50), "damaged"),
        (lambda out: _swap(out), "the index of"),
    ],
)
def test_what_is_no_whole_cache(loaded: Any, cache: Path, tmp_path: Path, damage: Any, words: str) -> None:
    out = shutil.copytree(cache, tmp_path / "copy")
    damage(out)
    with pytest.raises(CacheError) as caught:
        CachedRows(out, loaded.inputs)
    assert words in caught.value.message
    assert isinstance(caught.value, KiwiError)
    assert caught.value.hint


def _swap(out: Path) -> None:
    """An index that takes a mask for the target."""
    index = json.loads((out / "index.json").read_text())
    index["rows"][0]["tensors"]["target"] = index["rows"][0]["tensors"]["coverage"]
    (out / "index.json").write_text(json.dumps(index))
