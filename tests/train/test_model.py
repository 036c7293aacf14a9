"""The model as it is trained computes what the pipeline computes, for a batch of prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kiwi_cli.model.sampling import SHIFT
from kiwi_cli.train.batch import Batch, Prompt, Sample, collate
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.objective import loss_weights, noised, training_sigmas

from ..conftest import CHECKPOINT, Case, relative_error

TEXTS = ("make it snowy", "turn the red ball into a blue one, please")


@pytest.fixture(scope="module")
def model() -> KiwiTrainModel:
    return KiwiTrainModel.from_folder(CHECKPOINT).eval()


def sample_of(pipe: Any, case: Case, text: str) -> Sample:
    """A sample whose vision features are computed as the pipeline computes them."""
    inputs = pipe.inputs(case.frames, text, case.references)
    qwen = pipe.mllm_encoder.qwen
    features = []
    with torch.no_grad():
        if inputs.pixel_values_videos is not None:
            features += qwen.get_video_features(inputs.pixel_values_videos, inputs.video_grid_thw).pooler_output
        if inputs.pixel_values is not None:
            features += qwen.get_image_features(inputs.pixel_values, inputs.image_grid_thw).pooler_output
    prompt = Prompt(inputs.mode, inputs.input_ids[0], inputs.position_ids[:, 0], torch.cat(list(features)))
    references = case.tensors.get("reference_latents")
    return Sample(
        prompt,
        case.tensors["latents_final"][0],
        case.tensors["source_latents"][0],
        None if references is None else references[0],
    )


def test_contexts_of_prompts_of_different_length(pipe: Any, case: Case, model: KiwiTrainModel) -> None:
    batch = collate([sample_of(pipe, case, text) for text in TEXTS], [0, 1], seed=0)
    assert len(set(batch.attention_mask.sum(dim=1).tolist())) == 2  # one is padded
    with torch.no_grad():
        together = model.context(batch)
    alone = torch.cat([pipe.encode_instruction(case.frames, text, case.references) for text in TEXTS])
    assert relative_error(together, alone) <= 1e-5


def test_recorded_velocities(pipe: Any, case: Case, model: KiwiTrainModel) -> None:
    """What the released code computed for a step is what the loss is taken of."""
    from kiwi_cli.model.sampling import flow_sigmas

    model.references_first = bool(case.call.get("ref_pad_first"))
    sample = sample_of(pipe, case, case.call["prompt"])
    sigmas = flow_sigmas(case.call["steps"])
    for name in (name for name in case.tensors if name.startswith("velocity_")):
        step = int(name[-3:])
        batch = collate([sample], [0], seed=0)
        batch.sigma, batch.timestep = sigmas[step][None], 1000 * sigmas[step][None]
        with torch.no_grad():
            velocity = model.velocity(batch, case.tensors[f"latents_{step:03d}"], case.tensors["context"])
        assert relative_error(velocity, case.tensors[name]) <= 1e-5, name


def test_loss_is_the_weighted_error_of_each_draw(pipe: Any, case: Case, model: KiwiTrainModel) -> None:
    samples = [sample_of(pipe, case, text) for text in TEXTS]
    batch = collate(samples, [5, 6], seed=1, draws=3)
    with torch.no_grad():
        losses = model(batch)
        assert losses.shape == (2,) and losses.dtype == torch.float32
        by_hand = by_draw(model, batch)
    assert torch.allclose(losses, by_hand, rtol=1e-4)
    # A sample's loss does not depend on what else is in the batch.
    with torch.no_grad():
        alone = model(collate(samples[1:], [6], seed=1, draws=3))
    assert torch.allclose(alone, losses[1:], rtol=1e-4)


def by_draw(model: KiwiTrainModel, batch: Batch) -> torch.Tensor:
    context = model.context(batch).repeat_interleave(3, dim=0)
    clean = batch.target.repeat_interleave(3, dim=0)
    errors = []
    for number in range(len(clean)):
        level = float(batch.sigma[number])
        step = int((training_sigmas(SHIFT) == batch.sigma[number]).nonzero())
        one = slice(number, number + 1)
        row = slice(number // 3, number // 3 + 1)
        latents = noised(clean[one], batch.noise[one], batch.sigma[one])
        assert torch.allclose(latents, (1 - level) * clean[one] + level * batch.noise[one])
        references = None if batch.references is None else model.ref_embedder(batch.references[row])
        velocity = model.transformer(
            latents,
            batch.timestep[one],
            context[one],
            source_embeds=model.source_embedder(batch.source[row]),
            reference_embeds=references,
            sigma=batch.sigma[one],
            references_first=model.references_first,
        ).sample
        errors.append((velocity - (batch.noise[one] - clean[one])).square().mean() * loss_weights(SHIFT)[step])
    return torch.stack(errors).view(-1, 3).mean(dim=1)


def test_without_source_latents_the_source_does_not_matter(pipe: Any, case: Case, model: KiwiTrainModel) -> None:
    sample = sample_of(pipe, case, TEXTS[0])
    batch = collate([sample], [0], seed=0)
    other = collate([sample], [0], seed=0)
    assert other.source is not None
    other.source = other.source + 1.0
    try:
        model.uses_source = True
        with torch.no_grad():
            assert not torch.equal(model(batch), model(other))
            model.uses_source = False
            assert torch.equal(model(batch), model(other))
    finally:
        model.uses_source = True
