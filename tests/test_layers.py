"""Dependencies point one way: cli -> job -> pipeline -> models; media and weights know no model class."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "src" / "kiwi_cli"
MODELS = {"mllm", "mllm_inputs", "transformer", "vae", "coders", "strips", "sampling"}
MAY_IMPORT = {
    "errors": set(),
    "variants": set(),
    "pictures": {"errors"},
    "sampling": {"errors"},
    "coders": set(),
    "strips": {"coders"},
    "transformer": set(),
    "sight": {"errors"},
    "mllm_inputs": {"errors", "pictures", "sight"},
    "mllm": {"mllm_inputs", "sight"},
    "vae": {"coders", "errors", "strips"},
    "devices": {"errors"},
    "frames": {"errors"},
    "memory": {"errors"},
    "residency": {"memory", "mllm_inputs", "pipeline"},  # the last two for types only
    "console": set(),
}
NEVER = {
    "video": {"torch", "diffusers", "transformers", "typer", "rich", "safetensors", "huggingface_hub"},
    "models": {"typer", "rich", "av", "huggingface_hub"},
}


def imports(path: Path) -> set[str]:
    """Names of all modules a file imports, also inside functions; ours without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "kiwi_cli":
            found |= {f"kiwi_cli.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("kiwi_cli.")}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_a_low_module_imports_only_what_is_below_it(module: str) -> None:
    assert ours(PACKAGE / f"{module}.py") <= MAY_IMPORT[module]


def test_media_knows_no_model_and_models_know_no_terminal() -> None:
    for path in (PACKAGE / "video").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & NEVER["video"], path
        assert ours(path) <= {"video", "errors", "__version__"}, path
    for module in MODELS | {"pipeline"}:
        roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
        assert not roots & NEVER["models"], module


def test_nobody_imports_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli" and path.name != "__main__.py":
            assert "cli" not in ours(path), path


def test_weights_know_no_model_class() -> None:
    for path in (PACKAGE / "weights").glob("*.py"):
        # How the loader renames the VAE's keys is what a conversion must undo: the one exception.
        assert not ours(path) & (MODELS | {"pipeline", "checkpoint", "video"}) - {"vae"}, path
