"""How strongly a LoRA file wants its factors added: what its header, or the adapter_config.json beside it, says.

The change of a weight is `scale * up @ down`. PEFT's scale is alpha / rank, or alpha / sqrt(rank) with `use_rslora`;
`alpha_pattern` and `rank_pattern` hold other numbers for some modules, by regular expressions that end at the module's
name. diffusers writes the same settings into the file's header. A setting that changes the result in a way that is not
carried out here is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.fetch import ADAPTER_CONFIG as CONFIG
from kiwi_cli.weights.fetch import ADAPTER_FILE as PEFT_FILE
from kiwi_cli.weights.tensorfile import read_metadata

HEADER_KEY = "lora_adapter_metadata"
MAX_PATTERN = 300  # characters: a module's name; a longer pattern, or one with nested repeats, is not tried

OTHER_METHODS = {
    # setting -> what it makes of the file
    "use_dora": "a DoRA",
    "fan_in_fan_out": "a LoRA of transposed weights",
    "use_qalora": "a QALoRA",
    "use_bdlora": "a block-diagonal LoRA",
    "velora_config": "a VeLoRA",
    "kasa_config": "a KaSA",
    "monteclora_config": "a MonteCLoRA",
    "arrow_config": "a mixture of LoRAs",
    "alora_invocation_tokens": "an activated LoRA",
    "layer_replication": "a LoRA of repeated layers",
    "modules_to_save": "a LoRA with whole modules beside it",
    "target_parameters": "a LoRA of bare parameters",
}


@dataclass(frozen=True)
class Scales:
    """The scale of each module of one file.

    Attributes:
        alpha: None when nothing says one: the factors are added as they are.
        rooted: whether square roots of the rank divide (rank-stabilised LoRA).
        alphas, ranks: patterns -> other numbers for some modules.
    """

    alpha: float | None = None
    rank: float | None = None
    rooted: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)

    def of(self, module: str, rank: int) -> float:
        """The factor of one module, which has `rank` in the file."""
        alpha = _by_pattern(self.alphas, module, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rooted else rank)

    def rank_of(self, module: str) -> float | None:
        """The rank that is said of a module; None when none is."""
        return _by_pattern(self.ranks, module, self.rank)


def read_scales(path: Path) -> Scales:
    """What is said of a LoRA file: by its own header, else by the adapter_config.json in its folder.

    Raises:
        CheckpointError: settings that cannot be read, or that ask for another method.
    """
    said = read_metadata(path).get(HEADER_KEY)
    if said is not None:
        return _scales(_of_transformer(_object(said, path)), path)
    config = path.with_name(CONFIG)
    if belongs(path) and config.is_file():
        try:
            return _scales(_object(config.read_text(encoding="utf-8"), config), config)
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read '{config}': {error}", "check the file") from error
    if path.name == PEFT_FILE:
        raise CheckpointError(f"there is no {CONFIG} beside '{path}'", "PEFT writes both: put it there")
    return Scales()


def belongs(path: Path) -> bool:
    """Whether an adapter_config.json in a file's folder is this file's: under PEFT's own name, or the only file there.

    A folder of many LoRAs may hold one adapter's settings too.
    """
    return path.name == PEFT_FILE or [*path.parent.glob("*.safetensors")] == [path]


def _of_transformer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's settings of a header that may hold several parts' (diffusers: `transformer.r`)."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        part, _, name = key.rpartition(".")
        parts.setdefault(part, {})[name] = value
    return parts.get("transformer") or parts.get("") or (next(iter(parts.values())) if len(parts) == 1 else {})


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _unusable(path, "they are not a JSON object")
    return found


def _scales(settings: Mapping[str, Any], path: Path) -> Scales:
    kind = str(settings.get("peft_type") or "LORA").rpartition(".")[2]
    if kind != "LORA":
        raise CheckpointError(f"'{path}' is of the kind {kind}, which is not read", "use a plain LoRA")
    for name, what in OTHER_METHODS.items():
        if settings.get(name):
            raise CheckpointError(
                f"'{path}' is {what} ('{name}' is set), which is not read", "merge it with PEFT, or use a plain LoRA"
            )
    if settings.get("bias") not in (None, "none"):
        raise CheckpointError(f"'{path}' trained biases too ('bias' is set), which is not read", "use a plain LoRA")
    alpha, rank = (_number(settings.get(name), name, path) for name in ("lora_alpha", "r"))
    patterns = [_pattern(settings.get(name), name, path) for name in ("alpha_pattern", "rank_pattern")]
    return Scales(alpha, rank, bool(settings.get("use_rslora")), *patterns)


def _number(value: Any, name: str, path: Path) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _unusable(path, f"'{name}' is {value!r}")
    if name in ("r", "rank_pattern") and value <= 0:
        raise _unusable(path, f"'{name}' is {value!r}")
    return float(value)


def _pattern(value: Any, name: str, path: Path) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _unusable(path, f"'{name}' is {value!r}")
    found = {}
    for pattern, number in value.items():
        try:
            if len(pattern) > MAX_PATTERN or re.search(r"[*+}]\)?[*+{]", pattern):
                raise ValueError
            re.compile(pattern)
        except (re.error, ValueError):
            raise _unusable(path, f"'{name}' has the pattern '{pattern[:60]}'") from None
        found[pattern] = _number(number, name, path) or 0.0
    return found


def _by_pattern(patterns: Mapping[str, float], module: str, default: float | None) -> float | None:
    """The number of the first pattern that fits the end of a module's name, as PEFT looks for it."""
    for pattern, number in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return number
    return default


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the LoRA settings in '{path}' cannot be used: {what}", "save the LoRA again with PEFT")
