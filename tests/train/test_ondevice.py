"""Training in minutes: its shortcuts give what the plain ways give. All on the CPU."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.data.encode import Encoder
from kiwi_cli.model.prompt import REFERENCE_SUFFIX
from kiwi_cli.model.vision_sizes import PixelBounds
from kiwi_cli.synth.edits import LOCAL
from kiwi_cli.synth.wordings import EVERY_KIND, KINDS
from kiwi_cli.train import tiny_vae as small_vae
from kiwi_cli.train.batch import Batch, Sample, collate
from kiwi_cli.train.dataset import PromptBuilder
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.objective import loss_weights, training_sigmas
from kiwi_cli.train.ondevice import whole
from kiwi_cli.train.ondevice.bank import Bank, Coder, upload
from kiwi_cli.train.ondevice.drawing import TEXT, Spec, Tools
from kiwi_cli.train.ondevice.generators import Chunk, Generators
from kiwi_cli.train.ondevice.guide import Guide
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.objective import Form, Objective
from kiwi_cli.train.ondevice.prompts import PromptForm
from kiwi_cli.train.ondevice.recipe import RECIPES, Recipe
from kiwi_cli.train.ondevice.vision import Tower
from kiwi_cli.weights.hub import locate

CPU = torch.device("cpu")
SPECS = {spec.name: spec for spec in (Spec("clip", 64, 64, 5, 2, 3, 1), Spec("wide", 144, 80, 17, 1, 2, 1))}


def tiny() -> Path:
    return locate("tiny")


@cache
def model() -> KiwiTrainModel:
    return KiwiTrainModel.from_folder(tiny(), torch.float32)


@cache
def encoder() -> Encoder:
    return Encoder.from_folder(tiny(), CPU, torch.float32)


def tools() -> Tools:
    bounds: PixelBounds = model().mllm_encoder.bounds
    return Tools(str(tiny() / "processor/tokenizer.json"), REFERENCE_SUFFIX, bounds, 16, 4)


@cache
def drawn(name: str) -> dict[str, np.ndarray]:
    """The first chunk of a specification."""
    with Generators(tools(), SPECS, 0, {name: 1.0}) as generators:
        chunk = generators.take()
        assert chunk is not None
        return {key: value.copy() for key, value in chunk.arrays.items()}


@cache
def bank(name: str) -> Bank:
    spec = SPECS[name]
    visual = model().mllm_encoder.qwen.visual
    sizes = {tools().seen_size(spec), tools().picture_size(spec)}
    towers = {(height, width): Tower(visual, model().inputs.geometry, height, width) for width, height in sizes}
    filled = Bank(spec, tools(), 4, CPU)
    arrays = {key: value.copy() for key, value in drawn(name).items()}
    filled.add(upload(Chunk(spec, False, arrays, lambda: None), CPU), Coder(encoder().vae, towers))
    return filled


def form(name: str, still: bool, reference: bool) -> Form:
    spec = SPECS[name]
    frames = 1 if still else spec.frames
    prompts = PromptForm.of(model().inputs, frames, spec.width, spec.height, reference, TEXT)
    return Form(bank(name), prompts, 1 + (frames - 1) // 4, reference, batch=2, draws=2, strength=5.0)


FORMS = [(name, still, reference) for name in SPECS for still in (False, True) for reference in (False, True)]


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_a_whole_clip_is_coded_as_its_chunks_are(frames: int) -> None:
    vae = encoder().vae
    pixels = torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = small_vae.encode(vae, pixels)
        assert torch.allclose(whole.encode(vae, pixels), latents, atol=1e-4)
        back = whole.decode(vae, latents)
        assert back.shape == pixels.shape
        assert torch.allclose(back, small_vae.decode(vae, latents), atol=1e-4)


@pytest.mark.parametrize("name", list(SPECS))
def test_the_bank_holds_what_the_caches_hold(name: str) -> None:
    arrays, tables, spec = drawn(name), bank(name).tables, SPECS[name]

    def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return torch.allclose(found.float(), expected.float(), rtol=0.01, atol=0.01)  # kept in bfloat16

    assert close(tables["source"][0], encoder().latents([arrays["source"][0]])[0])
    assert close(tables["target"][0, 1], encoder().latents([arrays["target"][0, 1]])[0])
    assert close(tables["seen"][0], encoder().vision([arrays["source"][0]], True)[0].flatten(0, 2))
    assert close(tables["still"][0], encoder().vision([arrays["source"][0][:1]], False)[0].flatten(0, 2))
    assert close(tables["reference"][0, 0], encoder().latents([arrays["reference"][0, 0]])[0])
    for row in range(spec.edits + spec.references):
        kind = KINDS[int(arrays["kind"][0, row])]
        changed = np.abs(arrays["target"][0, row].astype(int) - arrays["source"][0]).max(axis=-1) > 0
        covered = arrays["coverage"][0, row]
        if kind in LOCAL:  # nothing that changed lies where nothing is covered
            places = encoder().coverage(changed).numpy()
            assert ((covered > 0) | (places == 0)).all() and covered.min() == 0
        else:
            assert (covered == 1).all()


def batch_of(asked: Form, scenes: torch.Tensor, rows: torch.Tensor) -> Batch:
    """The same rows as the caches' way gives them: built from the words, padded and stacked on the host."""
    found, inputs, spec = asked.rows(scenes, rows), model().inputs, asked.bank.spec
    builder, samples = PromptBuilder(inputs), []
    frames = 1 if asked.frames == 1 else spec.frames
    (seen_w, seen_h), (pic_w, pic_h) = tools().seen_size(spec), tools().picture_size(spec)
    for row in range(len(scenes)):
        words = inputs.tokenizer.decode(found.text[row, : found.length[row]].tolist())
        grids = [((min(frames, 16) + 1) // 2, seen_h // 14, seen_w // 14)]
        features = [found.seen[row].float()]
        if asked.reference:
            assert found.picture is not None
            words = words.removesuffix(REFERENCE_SUFFIX)
            grids.append((1, pic_h // 14, pic_w // 14))
            features.append(found.picture[row].float())
        references = None if found.reference is None else found.reference[row]
        prompt = builder(asked.prompts.mode, words, grids, torch.cat(features))
        samples.append(Sample(prompt, found.target[row], found.source[row], references, found.weight[row]))
    return collate(samples, list(range(len(samples))), 0, asked.draws, "weighted")


@pytest.mark.parametrize(("name", "still", "reference"), FORMS)
def test_a_step_has_the_loss_of_the_same_rows_from_a_cache(name: str, still: bool, reference: bool) -> None:
    asked = form(name, still, reference)
    scenes = torch.tensor([0, asked.bank.scenes - 1])
    rows = torch.tensor([SPECS[name].edits] * 2 if reference else [0, 1])
    batch = batch_of(asked, scenes, rows)
    objective = Objective(model(), CPU, torch.float32)
    with torch.no_grad():
        expected = model()(batch)
        found = asked.rows(scenes, rows)
        losses = objective.losses(asked, found, batch.sigma, batch.noise).view(-1, asked.draws).mean(dim=1)
    assert torch.allclose(losses, expected, rtol=1e-4)
    ids = asked.prompts.ids(found.text, asked.prompts.places(found.length))
    assert torch.equal(ids[:, -batch.input_ids.shape[1] :], batch.input_ids)


def test_the_reference_picture_is_seen_as_an_edit_sees_it() -> None:
    arrays = drawn("clip")
    picture = Image.fromarray(arrays["picture"][0, 0, 0])  # resized already: resizing it again changes nothing
    expected = encoder().reference_vision([picture])[0].flatten(0, 2)
    assert torch.allclose(bank("clip").tables["picture"][0, 0].float(), expected, rtol=0.01, atol=0.01)


def test_processes_draw_what_this_one_draws_and_held_out_scenes_first() -> None:
    with Generators(tools(), SPECS, 1, {"clip": 1.0}) as generators:
        generators.first("clip", 77)
        chunks = []
        for _ in range(2):
            chunk = generators.take(wait=120.0)
            assert chunk is not None
            chunks.append((chunk.held_out, {key: value.copy() for key, value in chunk.arrays.items()}))
            chunk.release()
    assert [held_out for held_out, _ in chunks] == [True, False]
    for key, value in drawn("clip").items():
        assert np.array_equal(chunks[1][1][key], value), key
    assert not np.array_equal(chunks[0][1]["source"], chunks[1][1]["source"])


def test_a_guide_reads_kind_and_statistics_off_the_queries_alone() -> None:
    torch.manual_seed(0)
    guide, context = Guide(4, 16, 3), torch.randn(8, 6, 16)
    kind, target = torch.arange(8, dtype=torch.int16), torch.randn(8, 3, 2, 4, 4)
    with torch.no_grad():
        first = float(guide(context, kind, target))
        assert first > math.log(len(EVERY_KIND)) - 1  # it knows nothing
        assert float(guide(context[:, 2:], kind, target)) == first  # a reference's tokens stand before them
    learner = Learner(dict(guide.named_parameters()), 0.03)
    for _ in range(150):
        learner.step(lambda: guide(context, kind, target), 1.0)
    with torch.no_grad():
        assert float(guide(context, kind, target)) < 0.1
        assert float(guide(context.flip(0), kind, target)) > 1  # and says nothing right of other contexts


def test_a_guide_counts_as_much_as_it_is_told_to() -> None:
    asked = form("clip", False, False)
    guide = Guide(16, 256, 48)
    with torch.no_grad():
        losses = [
            float(Objective(model(), CPU, torch.float32, with_guide).loss(asked, torch.Generator().manual_seed(3)))
            for with_guide in (None, (guide, 0.1), (guide, 0.2))
        ]
    assert losses[0] < losses[1] and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


@pytest.mark.parametrize("even", [0.0, 0.6])
def test_noise_levels_are_drawn_as_the_released_loss_weighs_them_or_as_a_sampler_goes(even: float) -> None:
    drawn = Objective(model(), CPU, torch.float32, even=even).sigmas(40_000, torch.Generator().manual_seed(0))
    levels, weights = training_sigmas(5.0), loss_weights(5.0)
    for level in (0.95, 0.85, 0.5):
        above = levels > level
        share = (1 - even) * float(weights[above].sum() / weights.sum()) + even * float(above.float().mean())
        assert float((drawn > level).float().mean()) == pytest.approx(share, abs=0.01)


def test_steps_on_rows_of_the_bank_bring_their_loss_down() -> None:
    mine = KiwiTrainModel.from_folder(tiny(), torch.float32)
    mine.requires_grad_(False)
    trained = {name: value for name, value in mine.named_parameters() if name.startswith("transformer.blocks.5")}
    objective, asked = Objective(mine, CPU, torch.float32), form("clip", False, False)
    learner = Learner(trained, 1e-3, decay=0.9)
    before = {name: value.detach().clone() for name, value in trained.items()}
    losses = []
    for _ in range(8):
        learner.step(lambda: objective.loss(asked, torch.Generator().manual_seed(3)), 1.0)
        losses.append(learner.window())
    assert losses[-1] < 0.8 * losses[0]
    with learner.averaged():
        ways = [(value - before[name]).norm() for name, value in trained.items() if value.ndim > 1]
        assert all(way > 0 for way in ways)
    again = Learner({name: value.detach().clone().requires_grad_() for name, value in trained.items()}, 1e-3, decay=0.9)
    again.load(learner.tensors())
    for first, second in zip(learner.tensors().values(), again.tensors().values(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_recipe_draws_all_that_it_asks_for(recipe: Recipe) -> None:
    specs = {spec.name: spec for spec in recipe.specs}
    assert {ask.spec for ask in recipe.asked} == set(specs) == set(recipe.capacity) == set(recipe.for_the_model)
    assert set(recipe.for_the_vae) | set(recipe.held_out) <= set(specs)
    assert all(specs[ask.spec].references for ask in recipe.asked if ask.reference)
    assert recipe.frames == max(spec.frames for spec in recipe.specs)
    longest = {name for name, spec in specs.items() if spec.frames == recipe.frames}
    assert longest & set(recipe.for_the_vae) and longest & set(recipe.held_out)  # the autoencoder learns them, measured
