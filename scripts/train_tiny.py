"""Train the embedded model from nothing, step by step: `make train-tiny`.

    python scripts/train_tiny.py                # all steps, in runs/tiny; what is there already is not done again
    python scripts/train_tiny.py vae base       # some: vae, base, cache, alignment, instruction, reference, polish,
                                                # longer, install, measure

A step that was interrupted goes on when it is started again: the autoencoder and the stages from their last state, the
cache from its last whole file. docs/tiny.md has the figures of the model that is in the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from kiwi_cli.synth.edits import LOCAL, STYLES, make_edit
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.synth.wordings import KINDS, WORDINGS, wording

ROOT = Path(__file__).resolve().parents[1]
WORK = Path("runs/tiny")  # as in the stages' files: start it in the project's folder
RECIPES = ROOT / "recipes/tiny"
PACKAGE = ROOT / "src/kiwi_cli/tiny"
REFERENCES = ("reference-background", "reference-subject")
GLOBAL = (*STYLES, "background")
TONES = ("black-and-white", "sepia", "negative")
PLAIN_LOCAL = tuple(kind for kind in LOCAL if kind not in REFERENCES)

# Kinds, rows, size and frames, first seed. Scenes of different seeds share nothing, and a held-out scene has textures
# and hues that no training scene has.
DATA: dict[str, dict[str, Any]] = {
    "images": {"kinds": (*GLOBAL, *PLAIN_LOCAL), "scenes": 1500, "per_scene": 3, "frames": 1, "seed": 1_000_000},
    "global": {"kinds": GLOBAL, "scenes": 5200, "per_scene": 5, "frames": 5, "seed": 2_000_000},
    "background": {"kinds": ("background",), "scenes": 2500, "per_scene": 1, "frames": 5, "seed": 7_000_000},
    "tones": {"kinds": TONES, "scenes": 1800, "per_scene": 3, "frames": 5, "seed": 8_000_000},
    "references": {"kinds": REFERENCES, "scenes": 3200, "per_scene": 2, "frames": 5, "seed": 3_000_000},
    "local": {"kinds": PLAIN_LOCAL, "scenes": 4000, "per_scene": 3, "frames": 5, "seed": 4_000_000},
    "wide": {"kinds": (*GLOBAL, *PLAIN_LOCAL), "scenes": 450, "per_scene": 4, "frames": 5, "seed": 5_000_000},
    "wide-references": {"kinds": REFERENCES, "scenes": 200, "per_scene": 2, "frames": 5, "seed": 6_000_000},
    "global-longer": {"kinds": GLOBAL, "scenes": 2400, "per_scene": 5, "frames": 5, "seed": 2_500_000},
    "references-longer": {"kinds": REFERENCES, "scenes": 4000, "per_scene": 2, "frames": 5, "seed": 3_500_000},
    "local-longer": {"kinds": PLAIN_LOCAL, "scenes": 5000, "per_scene": 3, "frames": 5, "seed": 4_500_000},
    "wide-longer": {"kinds": (*GLOBAL, *PLAIN_LOCAL), "scenes": 500, "per_scene": 4, "frames": 5, "seed": 5_500_000},
    "wide-references-longer": {"kinds": REFERENCES, "scenes": 250, "per_scene": 2, "frames": 5, "seed": 6_500_000},
}
SIZE, WIDE_SIZE = (64, 64), (144, 80)
HELD_OUT_SCENES = 40
HELD_OUT_SEED = 9_000_000
VAE_SCENES = 7000

TRANSFORMER = {"heads": 4, "head_dim": 64, "ffn": 1024, "layers": 6, "patch": [1, 1, 1]}
TEXT = {"hidden": 256, "ffn": 704, "layers": 3, "heads": 4, "kv_heads": 2}
VISION = {"hidden": 128, "ffn": 256, "depth": 2, "heads": 4, "full": [1]}
QUERIES, VOCABULARY = 16, 1536
WORKING = {"pixels": WIDE_SIZE[0] * WIDE_SIZE[1], "frames": 5, "steps": 16}


# -- clips --------------------------------------------------------------------------------------------------------


def vae_clips(seed: int) -> np.ndarray:
    """A scene, two of its edits and now and then a reference picture: (n, 5, 64, 64, 3) uint8."""
    scene = make_scene(seed, *SIZE, 5, held_out=seed >= HELD_OUT_SEED)
    rng = np.random.default_rng(seed)
    clips = [scene.source]
    for kind in rng.choice(KINDS, 2, replace=False):
        clips.append(make_edit(scene, str(kind), rng, scene.held_out).target)
    if rng.random() < 0.3:
        picture = make_edit(scene, "reference-subject", rng, scene.held_out).reference
        assert picture is not None
        clips.append(np.repeat(picture[None], 5, axis=0))
    return np.stack(clips)


def rows(task: tuple[str, int, bool]) -> list[dict[str, Any]]:
    """Some edits of one scene as the arguments of cache items."""
    name, seed, held_out = task
    spec = DATA[name]
    size = WIDE_SIZE if name.startswith("wide") else SIZE
    scene = make_scene(seed, *size, spec["frames"], held_out)
    rng = np.random.default_rng(seed)
    key = f"{name}/{seed}/{held_out}"
    items = []
    for kind in rng.choice(spec["kinds"], spec["per_scene"], replace=False):
        edit = make_edit(scene, str(kind), rng, held_out)
        items.append(
            {
                "source": scene.source,
                "target": edit.target,
                "prompt": wording(str(kind), edit.slots, rng, "held-out" if held_out else "seen"),
                "reference": edit.reference,
                "mask": edit.mask if kind in LOCAL else None,
                "kind": str(kind),
                "split": "held_out" if held_out else "train",
                "source_key": f"{key}/source",
                "target_key": f"{key}/{kind}/target",
                "reference_key": f"{key}/{kind}/reference",
                "mask_key": f"{key}/{kind}/mask",
                "group": key,
            }
        )
    return items


def tasks(name: str) -> list[tuple[str, int, bool]]:
    """The scenes of a data set, and the held-out ones behind them."""
    spec = DATA[name]
    seeds = [(name, spec["seed"] + number, False) for number in range(spec["scenes"])]
    return seeds + [(name, HELD_OUT_SEED + spec["seed"] + number, True) for number in range(HELD_OUT_SCENES)]


# -- steps --------------------------------------------------------------------------------------------------------


def vae(work: Path) -> None:
    from kiwi_cli.train.vae import VaeConfig, train_vae

    clips = {}
    for name, first, count in (("held-out", HELD_OUT_SEED, 300), ("train", 0, VAE_SCENES)):
        file = work / f"vae-clips-{name}.npy"
        if not file.exists():
            with get_context("spawn").Pool() as pool:
                made = list(pool.imap(vae_clips, range(first, first + count), chunksize=16))
            np.save(file.with_suffix(".part.npy"), np.concatenate(made))
            file.with_suffix(".part.npy").replace(file)
        clips[name] = np.load(file, mmap_mode="r")
    train_vae(VaeConfig(), clips["train"], clips["held-out"], work / "vae")


def base(work: Path) -> None:
    """The checkpoint that the stages begin from: the trained VAE, everything else new."""
    import torch

    from kiwi_cli.mllm import KiwiInstructionEncoder
    from kiwi_cli.train.exports import write_checkpoint
    from kiwi_cli.train.vae import load_vae
    from kiwi_cli.transformer import ConditionEmbedder, KiwiTransformer3DModel

    torch.manual_seed(0)
    width = TRANSFORMER["heads"] * TRANSFORMER["head_dim"]
    tokenizer = make_tokenizer()
    qwen = qwen_config(tokenizer)
    transformer = KiwiTransformer3DModel.from_config(
        {
            "patch_size": TRANSFORMER["patch"],
            "num_attention_heads": TRANSFORMER["heads"],
            "attention_head_dim": TRANSFORMER["head_dim"],
            "in_channels": 48,
            "out_channels": 48,
            "freq_dim": 256,
            "ffn_dim": TRANSFORMER["ffn"],
            "num_layers": TRANSFORMER["layers"],
            "rope_max_seq_len": 1024,
        }
    )
    mllm = KiwiInstructionEncoder(
        qwen_config=qwen,
        dit_dim=width,
        hidden_size=TEXT["hidden"],
        num_image_queries=QUERIES,
        num_video_queries=QUERIES,
        num_ref_queries=QUERIES,
        max_object_token=16,
        max_frames=16,
        min_visual_tokens=4,
    )
    embedders = [
        ConditionEmbedder(in_dim=48, dim=width, patch_size=tuple(TRANSFORMER["patch"]), zero_init=False)
        for _ in range(2)
    ]
    write_checkpoint(
        work / "base",
        transformer=transformer,
        vae=load_vae(work / "vae"),
        mllm_encoder=mllm,
        source_embedder=embedders[0],
        ref_embedder=embedders[1],
        tokenizer=tokenizer,
        qwen_config=qwen,
        extra={"working": WORKING},
        dtype=torch.float32,
    )


def make_tokenizer() -> Any:
    """Byte pairs learnt from the wordings and the system prompt, with the model's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from kiwi_cli.bench.random_model import CHAT_TEMPLATE, SPECIAL_TOKENS
    from kiwi_cli.mllm_inputs import REFERENCE_SUFFIX, SYSTEM_PROMPT
    from kiwi_cli.synth.textures import PALETTE

    seen = [template for kind in KINDS for template in WORDINGS[kind].seen]
    words = [f" {name} ball square triangle diamond stripes gradient plain" for name in PALETTE]
    text = [*(seen * 4), *words, SYSTEM_PROMPT, REFERENCE_SUFFIX, "system user assistant"] * 8
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def qwen_config(tokenizer: Any) -> dict[str, Any]:
    from kiwi_cli.bench.random_model import qwen_config as small_qwen_config

    return small_qwen_config({"text": {**TEXT, "vocab": len(tokenizer)}, "vision": VISION}, tokenizer)


def cache(work: Path, names: list[str]) -> None:
    import torch

    from kiwi_cli.train.cache import Item, write_cache
    from kiwi_cli.train.encode import Encoder

    encoder = Encoder.from_folder(work / "base", torch.device("cpu"), torch.float32, "bfloat16")
    for name in names:
        out = work / "cache" / name
        if (out / "index.json").exists():
            continue
        todo = tasks(name)

        def items(todo: list[tuple[str, int, bool]] = todo) -> Iterator[Item]:
            with get_context("spawn").Pool(2) as pool:
                for made in pool.imap(rows, todo, chunksize=8):
                    for item in made:
                        yield Item(**item)

        report = write_cache(out, items(), encoder, name=name, reference_views=2)
        print(f"{name}: {report.rows} rows, {report.held_out} held out", flush=True)


def stage(name: str) -> None:
    from kiwi_cli.console import Console
    from kiwi_cli.train.config import load_config
    from kiwi_cli.train.run import run_stage

    config = load_config(RECIPES / f"{name}.toml")
    if (Path(config.out) / "export/folder").exists():
        return
    run_stage(config, console=Console(), resume=True, device="cpu")


def install(work: Path) -> None:
    """Put the last stage's export into the package. It offers nothing before it is measured."""
    from kiwi_cli.cli import run

    shutil.rmtree(PACKAGE, ignore_errors=True)
    # The stages carry the autoencoder along in fp32; the package has everything in bf16.
    if run(["convert", str(work / "longer/export/folder"), str(PACKAGE), "--dtype", "bfloat16", "--quiet"]):
        raise SystemExit(1)
    _describe({"working": WORKING, "offers": []})


def measure(work: Path) -> None:
    """Edit held-out scenes with what is in the package; it then offers the kinds that pass."""
    out = work / "quality"
    script = ROOT / "benchmarks/tiny_quality.py"
    subprocess.run([sys.executable, str(script), str(PACKAGE), "--out", str(out)], check=True)
    _describe({"offers": json.loads((out / "table.json").read_text())["passing"]})


def _describe(keys: dict[str, Any]) -> None:
    file = PACKAGE / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys, indent=2) + "\n")


STEPS = ("vae", "base", "cache", "alignment", "instruction", "reference", "polish", "longer", "install", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], help="which; all by default")
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA), help="caches to make")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    for step in args.steps or STEPS:
        print(f"== {step}", file=sys.stderr, flush=True)
        if step == "vae":
            vae(WORK)
        elif step == "base":
            if not (WORK / "base").exists():
                base(WORK)
        elif step == "cache":
            cache(WORK, args.data)
        elif step == "install":
            install(WORK)
        elif step == "measure":
            measure(WORK)
        else:
            stage(step)


if __name__ == "__main__":
    main()
