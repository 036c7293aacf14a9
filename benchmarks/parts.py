"""Is it seen where a part was made anew? Drawn clips with exact truth, edited by `tiny`, then 16 of 41 frames anew.

    python benchmarks/parts.py --detail model
    python benchmarks/parts.py --detail source --clips 3

Printed is the seam ratio (docs/long-clips.md) at the part's two ends, over all clips: of the edit as it was, of the
part with the same seed, with others, and with other words; each beside the same at all frames of the part, ends
included, and at all that are not its ends.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from kiwi_cli.bench.seams.figures import Figures, Spread, Summary, Watch, figures
from kiwi_cli.bench.tiny.quality import FIRST_SEED, psnr
from kiwi_cli.editing.parts import Part
from kiwi_cli.editing.paths import latents_of
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import Session
from kiwi_cli.synth.edits import make_edit
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.synth.wordings import KINDS, wording
from kiwi_cli.video import Size, probe, read_frames

SIZE, FRAMES, RATE = Size(64, 64), 41, 24
FIRST, LAST = 13, 29
STYLES = ("sepia", "negative", "black-and-white")
PARTS = {
    "the same seed": {},
    "seed 5": {"seed": 5},
    "seed 6": {"seed": 6},
    "other words": {"instruction": "turn it into a night scene"},
}


def measured(output: Path, source: np.ndarray, truth: np.ndarray) -> Figures:
    edited, before = Watch(), Watch()
    shown = []
    with closing(read_frames(probe(output))) as results:
        for result, frame, target in zip(results, source, truth, strict=True):
            edited.add(result.rgb)
            before.add(frame)
            shown.append(psnr(result.rgb, target))
    return figures(edited, before, [FRAMES], [FIRST, LAST], RATE, shown)


def of_clip(session: Session, folder: Path, number: int, detail: str) -> dict[str, Figures]:
    kind, seed = STYLES[number % len(STYLES)], FIRST_SEED + number
    scene = make_scene(seed, *SIZE, FRAMES, held_out=True)
    edit = make_edit(scene, kind, np.random.default_rng([seed, KINDS.index(kind)]), held_out=True)
    clip = folder / f"{number}"
    clip.mkdir()
    for place, frame in enumerate(scene.source):
        Image.fromarray(frame).save(clip / f"{place:03}.png")
    words = wording(kind, edit.slots, np.random.default_rng(seed), "seen")
    asked = {"model": "tiny", "size": str(SIZE), "steps": 4, "detail": detail}
    request = EditRequest.of(clip, words, output=folder / f"{number}-out", keep_latents=True, **asked)
    session.run(prepare(request))
    assert request.output is not None
    found = {"as it was": measured(request.output, scene.source, edit.target)}
    for name, own in PARTS.items():
        part = Part(FIRST / RATE, LAST / RATE, **own)
        output = folder / f"{number}-{name.replace(' ', '-')}"
        again = request.changed(parts=(part,), latents=latents_of(request.output), output=output, keep_latents=False)
        session.run(prepare(again))
        found[name] = measured(output, scene.source, edit.target)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detail", choices=("model", "source"), default="source")
    parser.add_argument("--clips", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[Figures]] = {}
    with TemporaryDirectory() as name, Session() as session:
        for number in range(options.clips):
            for row, each in of_clip(session, Path(name), number, options.detail).items():
                found.setdefault(row, []).append(each)
    for row, clips in found.items():
        summary = Summary.of(clips)
        inside = Spread.of(clip.ratios[frame] for clip in clips for frame in range(FIRST, LAST + 1))
        shown = (("", summary.ratio), ("in the part ", inside), ("elsewhere ", summary.ratio_null))
        text = "   ".join(
            f"{where}{each.median:.2f} / {each.p95:.2f} / {each.worst:.2f}" for where, each in shown if each
        )
        print(f"{row:14} {text}   PSNR in the part {np.mean([clip.psnr[FIRST:LAST] for clip in clips]):.1f} dB")


if __name__ == "__main__":
    main()
