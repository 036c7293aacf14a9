"""What each stage trains, begins anew and leaves alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kiwi_cli.errors import UsageError
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.stages import STAGES, apply_stage, initialise

from ..conftest import CHECKPOINT


@dataclass(frozen=True)
class Rank:
    rank: int
    alpha: float = 0.0
    layers: str = "attention"


@pytest.fixture
def model() -> KiwiTrainModel:
    return KiwiTrainModel.from_folder(CHECKPOINT)


def groups_of(names: dict[str, torch.nn.Parameter]) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in names if ".lora_" not in name}


def test_alignment_trains_queries_connector_and_a_lora_only(model: KiwiTrainModel) -> None:
    trained = apply_stage(model, "alignment", lora={"language_model_lora": Rank(4)})
    assert groups_of(trained) == {"mllm_encoder.image_queries", "mllm_encoder.connector"}
    loras = [name for name in trained if ".lora_" in name]
    layers = model.mllm_encoder.qwen.language_model.config.num_hidden_layers
    assert len(loras) == layers * 4 * 2  # q, k, v, o; two factors
    assert all(".self_attn." in name for name in loras)
    assert not model.uses_source


def test_the_later_stages_add_to_the_earlier(model: KiwiTrainModel) -> None:
    seen: set[str] = set()
    for stage in ("alignment", "instruction", "reference"):
        assert seen < set(STAGES[stage].groups)
        seen = set(STAGES[stage].groups)
    trained = apply_stage(model, "reference", lora={"language_model_lora": Rank(4)})
    everything = {name for name, _ in model.named_parameters()}
    left = everything - set(trained)
    assert all(name.startswith("mllm_encoder.qwen.") for name in left)  # Qwen's own weights; and the vision tower
    assert any(name.startswith("mllm_encoder.qwen.visual.") for name in left)


def test_a_lora_changes_nothing_before_it_is_trained(model: KiwiTrainModel) -> None:
    layer = model.transformer.blocks[0].ffn.net[0].proj
    value = torch.randn(3, layer.in_features)
    before = layer(value)
    apply_stage(model, "instruction", groups=["transformer_lora"], lora={"transformer_lora": Rank(2, layers="all")})
    after = model.transformer.blocks[0].ffn.net[0].proj
    assert torch.equal(after(value), before)
    with torch.no_grad():
        after.lora_B.default.weight.normal_()
    assert not torch.equal(after(value), before)


def test_frozen_names_stay_out(model: KiwiTrainModel) -> None:
    trained = apply_stage(model, "instruction", freeze=["transformer.blocks.0."])
    assert not any(name.startswith("transformer.blocks.0.") for name in trained)
    assert any(name.startswith("transformer.blocks.1.") for name in trained)
    with pytest.raises(UsageError, match=r"transformer\.block9"):
        apply_stage(model, "instruction", freeze=["transformer.block9"])
    with pytest.raises(UsageError, match="vision_tower"):
        apply_stage(model, "instruction", groups=["vision_tower"])


def test_new_parts_begin_as_released(model: KiwiTrainModel) -> None:
    kept = model.transformer.blocks[0].attn1.to_q.weight.clone()
    initialise(model, STAGES["reference"].new, seed=1)
    mllm = model.mllm_encoder
    assert 0.015 < float(mllm.ref_queries.std()) < 0.025
    assert float(mllm.ref_connector[2].weight.abs().max()) == 0 and float(mllm.ref_connector[0].weight.std()) > 0
    assert float(model.ref_embedder.patch_embedding.weight.abs().max()) == 0
    assert float(model.source_embedder.patch_embedding.weight.abs().max()) > 0  # an earlier stage's: left alone
    assert torch.equal(model.transformer.blocks[0].attn1.to_q.weight, kept)
