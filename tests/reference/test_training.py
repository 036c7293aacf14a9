"""Quadruplets that the pipeline makes train stage 3 of the embedded model, as those drawn with references do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ..cli.terminal import inside
from . import planted

STAGE = """
stage = "reference"
model = "tiny"
out = "{out}"
fresh = ["ref_queries", "ref_connector", "ref_embedder"]
train = ["ref_queries", "ref_connector", "ref_embedder"]
steps = 30
global_batch = 8
micro_batch = 8
draws = 2
precision = "fp32"
checkpointing = false
[optimiser]
lr = 3e-3
[lora.language_model]
rank = 0
[validate]
every = 30
rows = 24
[[data]]
cache = "{cache}"
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_made_references_lower_the_held_out_loss_as_drawn_ones_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference parts of the model begin anew, the others stay as they are."""
    monkeypatch.chdir(tmp_path)
    planted.drawn(tmp_path / "rows", 96, seed=3, kinds=("reference-background",))
    code, _, err = inside(capsys, "data", "reference", "rows/rows.csv", "--out", "refs", "--recipe", "drawn")
    assert code == 0, err
    losses: dict[str, list[float]] = {}
    for name, table in (("made", "refs/reference.parquet"), ("drawn", "rows/rows.csv")):
        options = ("--held-out", 0.25, "--reference-views", 1, "--json")
        code, out, err = inside(capsys, "data", "cache", table, "--model", "tiny", "--out", f"cache-{name}", *options)
        assert code == 0 and '"bad": []' in out, err
        (tmp_path / f"{name}.toml").write_text(STAGE.format(out=f"run-{name}", cache=f"cache-{name}"))
        code, _, err = inside(capsys, "train", f"{name}.toml")
        assert code == 0, err
        losses[name] = [float(found) for found in re.findall(rf"held-out loss cache-{name} ([\d.]+)", err)]
    with capsys.disabled():
        sys.stdout.write(f"\nheld-out losses, step 0 and 30: {losses}\n")
    for before, after in losses.values():
        assert after < 0.95 * before, losses
