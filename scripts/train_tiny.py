"""Train the embedded model from nothing, step by step: `make train-tiny`. Or on a GPU, in minutes.

    python scripts/train_tiny.py                # all steps, in runs/tiny; what is there already is not done again
    python scripts/train_tiny.py vae base       # some: vae, base, cache, alignment, instruction, reference, polish,
                                                # longer, install, measure
    python scripts/train_tiny.py --device cuda --minutes 8 --out results/tiny            # from nothing, in 8 minutes
    python scripts/train_tiny.py --device cuda --minutes 4 --out results/tiny --from src/kiwi_cli/tiny
    python scripts/train_tiny.py --unpack results/tiny runs/tiny/model                   # for `kiwi edit --model`
    python scripts/train_tiny.py --unpack results/tiny src/kiwi_cli/tiny && python scripts/train_tiny.py measure

A step that was interrupted goes on when it is started again: the autoencoder and the stages from their last state, the
cache from its last whole file, a run in minutes from `--state`. docs/tiny.md has the figures of the model that is in
the package. The script runs from a checkout that is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from kiwi_cli.errors import EXIT_FAILED, KiwiError  # noqa: E402
from kiwi_cli.synth.edits import LOCAL, STYLES, make_edit  # noqa: E402
from kiwi_cli.synth.scenes import make_scene  # noqa: E402
from kiwi_cli.synth.wordings import KINDS, seen_wordings, wording  # noqa: E402
from kiwi_cli.train import tiny_base  # noqa: E402
from kiwi_cli.weights.settings import UNDERSTANDS  # noqa: E402
from kiwi_cli.weights.tensorfile import write_json  # noqa: E402

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
    from kiwi_cli.train.tiny_vae import VaeConfig, train_vae

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
    from kiwi_cli.train.tiny_vae import load_vae

    tiny_base.write_base(work / "base", load_vae(work / "vae"))


def cache(work: Path, names: list[str]) -> None:
    import torch

    from kiwi_cli.data.encode import Encoder
    from kiwi_cli.data.latents import Item, write_cache

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
    from kiwi_cli.cli.console import Console
    from kiwi_cli.train.config import load_config
    from kiwi_cli.train.run import run_stage

    config = load_config(RECIPES / f"{name}.toml")
    if (Path(config.out) / "export/folder").exists():
        return
    run_stage(config, events=Console(), resume=True, device="cpu")


def install(work: Path) -> None:
    """Put the last stage's export into the package. It offers nothing before it is measured."""
    from kiwi_cli.cli import run

    shutil.rmtree(PACKAGE, ignore_errors=True)
    # The stages carry the autoencoder along in fp32; the package has everything in bf16.
    if run(["convert", str(work / "longer/export/folder"), str(PACKAGE), "--dtype", "bfloat16", "--quiet"]):
        raise SystemExit(1)
    write_json(PACKAGE / UNDERSTANDS, seen_wordings())
    _describe({"working": tiny_base.WORKING, "offers": [], "detail": tiny_base.DETAIL})


def measure(work: Path) -> None:
    """Edit held-out scenes with what is in the package; it then offers the kinds that pass."""
    out = work / "quality"
    script = ROOT / "benchmarks/tiny_quality.py"
    subprocess.run([sys.executable, str(script), str(PACKAGE), "--out", str(out)], check=True)
    _describe({"offers": json.loads((out / "table.json").read_text())["passing"]})


def _describe(keys: dict[str, Any]) -> None:
    file = PACKAGE / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys, indent=2) + "\n")


# -- in minutes, on a GPU -------------------------------------------------------------------------------------------


def in_minutes(args: argparse.Namespace) -> int:
    """From `--from`, or from nothing, to exported parts in `--out`."""
    began = time.monotonic()
    from kiwi_cli.synth.photographs import installed
    from kiwi_cli.train.ondevice.recipe import RECIPES
    from kiwi_cli.train.ondevice.run import train
    from kiwi_cli.train.ondevice.session import Settings

    if args.compile:
        check_compiled(args.device)
    start = args.start
    share = args.vae_share
    if start is None:
        from kiwi_cli.train.tiny_vae import new_vae

        start = args.state / "base"
        share = 0.35 if share is None else share
        if not start.exists():
            tiny_base.write_base(start, new_vae())
    on_cpu = args.device == "cpu"
    settings = Settings(
        start=start,
        out=args.out,
        state=args.state,
        device=args.device,
        minutes=args.minutes - (time.monotonic() - began) / 60,  # what is imported above takes its time
        vae_share=0.2 if share is None else share,
        lr=args.lr,
        vae_lr=args.vae_lr or (3e-3 if args.start else 1e-2),
        positions=args.positions or (1024 if on_cpu else 32768),
        scale=args.scale or (0.05 if on_cpu else 1.0),
        workers=_workers() if args.workers is None else args.workers,
        steps=args.steps_of_each,
        draws=args.draws,
        record=not args.no_record,
        compiled=args.compile,
        seed=args.seed,
        photographs=tuple(str(path) for path in installed()) if args.photographs else (),
        recipe=RECIPES[args.recipe],
        say=lambda line: print(line, flush=True),
    )
    return train(settings)


def check_compiled(device: str) -> None:
    """That `--compile` can do something. (What is imported here needs PyAV, and nothing else in a run does.)"""
    from kiwi_cli.editing.checks import check_compiler
    from kiwi_cli.errors import UsageError

    if device != "cpu":
        raise UsageError("--compile is for --device cpu", "leave it out: a GPU replays its steps as graphs")
    check_compiler(device)


def _workers() -> int:
    """Processes that draw: two cores are left to the one that trains."""
    return max(1, len(os.sched_getaffinity(0)) - 2)


STEPS = ("vae", "base", "cache", "alignment", "instruction", "reference", "polish", "longer", "install", "measure")


def _arguments() -> argparse.Namespace:
    """What was given. Options that would do nothing beside the others are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], help="which; all by default")
    parser.add_argument("--data", nargs="*", choices=list(DATA), help="caches to make; all by default")
    parser.add_argument(
        "--unpack", nargs=2, type=Path, metavar=("PARTS", "FOLDER"), help="a checkpoint from --out's parts"
    )
    add = parser.add_argument_group("in minutes, with data drawn as it is learnt").add_argument
    in_minutes = [
        add("--minutes", type=float, help="of the whole run, from its start to its end"),
        add("--device", choices=["cuda", "cpu"], default="cuda"),
        add("--out", type=Path, default=Path("results/tiny"), help="parts, metrics and figures"),
        add("--from", dest="start", type=Path, help="a checkpoint to go on from; none: from nothing"),
        add("--state", type=Path, default=Path("runs/tiny-minutes"), help="what is needed to go on"),
        add("--vae-share", type=float, help="of the time, for the autoencoder (0.2; from nothing 0.35)"),
        add("--lr", type=float, default=1.5e-3, help="highest rate"),
        add("--vae-lr", type=float, help="the autoencoder's (3e-3; from nothing 1e-2)"),
        add("--positions", type=int, help="of latents and prompts in a step (32768; on a CPU 1024)"),
        add("--scale", type=float, help="of chunks and the autoencoder's steps (1; on a CPU 0.05)"),
        add("--workers", type=int, help="processes that draw scenes (all cores but two)"),
        add("--max-steps", dest="steps_of_each", type=int, help="of each stage, for trials"),
        add("--recipe", choices=["whole", "colourist", "colourist-long"], default="whole", help="what is asked"),
        add("--photographs", action="store_true", help="those of installed packages are drawn from too"),
        add("--no-record", action="store_true", help="hand over every kernel, no CUDA graphs"),
        add("--draws", type=int, default=2, help="timesteps of a row in a step (2)"),
        add("--compile", action="store_true", help="on a CPU with AMX: 4 times as fast"),
        add("--seed", type=int, default=0),
    ]
    absent = object()  # what is there before arguments are read keeps their defaults out
    args = parser.parse_args(namespace=argparse.Namespace(**{action.dest: absent for action in in_minutes}))
    timed = [action.option_strings[0] for action in in_minutes if getattr(args, action.dest) is not absent]
    for action in in_minutes:
        if getattr(args, action.dest) is absent:
            setattr(args, action.dest, action.default)
    by_steps = [*args.steps, *(["--data"] if args.data is not None else [])]
    if args.unpack and (timed or by_steps):
        parser.error(f"{', '.join([*by_steps, *timed])}: not with --unpack")
    if args.minutes is not None and by_steps:
        parser.error(f"{', '.join(by_steps)}: not with --minutes")
    if args.minutes is None and timed:
        parser.error(f"{', '.join(timed)}: only with --minutes")
    return args


def main() -> int:
    args = _arguments()
    try:
        return _carry_out(args)
    except KiwiError as error:
        print(f"error: {error.message}" + (f"\n\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        file = f"'{error.filename}': " if error.filename else ""
        print(f"error: {file}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED


def _carry_out(args: argparse.Namespace) -> int:
    if args.unpack:
        from kiwi_cli.train.ondevice.parts import unpack

        unpack(*args.unpack)
        return 0
    if args.minutes is not None:
        return in_minutes(args)
    WORK.mkdir(parents=True, exist_ok=True)
    for step in args.steps or STEPS:
        print(f"== {step}", file=sys.stderr, flush=True)
        if step == "vae":
            vae(WORK)
        elif step == "base":
            if not (WORK / "base").exists():
                base(WORK)
        elif step == "cache":
            cache(WORK, list(DATA) if args.data is None else args.data)
        elif step == "install":
            install(WORK)
        elif step == "measure":
            measure(WORK)
        else:
            stage(step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
