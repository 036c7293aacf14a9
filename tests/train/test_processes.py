"""Several processes give what one gives, and what they save is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import write_cache
from kiwi_cli.train.curves import read_metrics

from ..conftest import CHECKPOINT
from ..test_parallel import start_two
from .test_loop import TOLERANCE, distance, run
from .test_run import KINDS, items
from .test_run import run as run_real
from .test_run import settings as real_settings
from .toy import Toy

CHANGES: dict[str, Any] = {
    "steps": 3,
    "bucket_batch": 2,
    "checkpointing": True,
    "optimiser": {"lr": 1e-3, "eps": 1e-4},
    "validate": {"every": 3, "rows": 2},
}

TWO = """
import sys
from pathlib import Path
from tests.train.test_loop import run
out, rank = Path(sys.argv[1]), __import__("os").environ["RANK"]
import torch
model, result = run(out, strategy="ddp", micro_batch=2, clip=0.3, ema=0.9, bucket_batch=4)
torch.save(model.state_dict(), out / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "one", micro_batch=4, clip=0.3, ema=0.9, bucket_batch=4)
    start_two(TWO, tmp_path / "two")
    for rank in (0, 1):
        model = Toy()
        model.load_state_dict(torch.load(tmp_path / f"two/{rank}.pt", weights_only=True))
        assert distance(whole, model) < TOLERANCE
    lines = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        for key in {"loss", "grad_norm", "held_out"} & a.keys():
            assert a[key] == pytest.approx(b[key], rel=1e-4)
    states = [load_file(tmp_path / name / "states/step-00000012/ema.safetensors") for name in ("one", "two")]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-6)
    random = load_file(tmp_path / "two/states/step-00000012/random.safetensors")
    assert set(random) == {"0.cpu", "1.cpu"}
    # What two processes saved, one goes on from.
    config = {"steps": 14, "ema": 0.9, "clip": 0.3, "bucket_batch": 4}
    _, on = run(tmp_path / "two", resume=True, **config)
    _, alone = run(tmp_path / "one", resume=True, **config)
    assert on.step == 14 and on.loss == pytest.approx(alone.loss, rel=1e-4)


REAL = """
import sys
from pathlib import Path
import torch
from tests.conftest import CHECKPOINT
from tests.train.test_processes import CHANGES
from tests.train.test_run import run, settings
run(settings("reference", CHECKPOINT, Path(sys.argv[1]), Path(sys.argv[2]), **CHANGES, strategy="ddp", micro_batch=1))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one_on_the_real_model(loaded: Any, tmp_path: Path) -> None:
    """With checkpointing, on batches of which each leaves some queries or embedders out."""
    caches = tmp_path / "caches"
    for name in KINDS:
        write_cache(caches / name, items(name, 6), Encoder.from_pipeline(loaded), held_out=0.2, reference_views=1)
    start_two(REAL, tmp_path / "two", caches)
    run_real(real_settings("reference", CHECKPOINT, tmp_path / "one", caches, **CHANGES, micro_batch=2))
    one, two = (load_file(tmp_path / name / "states/step-00000003/weights.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert float((value - two[name]).norm() / (value.norm() + 1e-6)) < 1e-4, name


SHARDED = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from kiwi_cli.train import launch
from kiwi_cli.train.loop import train
from tests.train.test_loop import StopAfter
from tests.train.toy import Toy, collate, held_out, rows, settings

class Sharding(Accelerator):
    # accelerate shards on GPUs alone; what it does there, done here: parameters and optimiser exchanged in place.
    def prepare(self, model, optimiser):
        fully_shard(model.body)
        fully_shard(model)
        parameters = [value for value in model.parameters() if value.requires_grad]
        group = {key: value for key, value in optimiser.param_groups[0].items() if key != "params"}
        return model, self.prepare_optimizer(torch.optim.AdamW([{**group, "params": parameters}]))

launch.Accelerator = Sharding
out = Path(sys.argv[1])
config = settings(out, strategy="ddp", micro_batch=2, clip=0.3, ema=0.9, bucket_batch=4)
data = {"held_out": held_out(), "collate": collate, "device": "cpu"}
train(config, Toy(), rows(), stop=StopAfter(7), **data)
train(config, Toy(), rows(), resume=True, **data)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_parameters_are_saved_whole_and_resumed(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"micro_batch": 4, "clip": 0.3, "ema": 0.9, "bucket_batch": 4}
    _, one = run(tmp_path / "one", **changes)
    start_two(SHARDED, tmp_path / "two")
    for name in ("weights", "optimiser", "ema"):
        a, b = (load_file(tmp_path / f"{run}/states/step-00000012/{name}.safetensors") for run in ("one", "two"))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    held = [line["held_out"] for line in read_metrics(tmp_path / "two") if "held_out" in line]
    assert held[-1] == pytest.approx(one.held_out[-1][1], rel=1e-4)
