"""What the embedded model is shown in a run of minutes, and in which shares. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kiwi_cli.train.ondevice.drawing import Spec


@dataclass(frozen=True)
class Ask:
    """A form of batches: of which scenes, whether the first frame alone, whether with a reference, and how often."""

    spec: str
    still: bool
    reference: bool
    weight: float


@dataclass(frozen=True)
class Recipe:
    """What is drawn and asked.

    Attributes:
        name: of the recipe, for `--recipe` and in states.
        specs: what is drawn. capacity: name -> scenes that are kept.
        for_the_vae, for_the_model: name -> how many of the chunks, while the one and the other is trained.
        asked: forms of batches.
        held_out: name -> chunks of held-out scenes for the figures at the end.
        frames: of a clip that the exported model edits at a time, if its autoencoder was trained too.
        guide: how much it counts what contexts say of the edit (`guide.py`); 0: they are not asked.
        visible: share of the loss that is of what shows in the pictures (`visible.py`).
        even: share of timesteps drawn as a sampler goes, not as the released loss weighs them.
    """

    name: str
    specs: tuple[Spec, ...]
    capacity: Mapping[str, int]
    for_the_vae: Mapping[str, float]
    for_the_model: Mapping[str, float]
    asked: tuple[Ask, ...]
    held_out: Mapping[str, int]
    frames: int
    guide: float = 0.0
    visible: float = 0.0
    even: float = 0.0

    def scaled(self, scale: float) -> Recipe:
        """The same with chunks and capacities of another size, for trials on a processor."""
        specs = tuple(replace(spec, scenes=max(1, round(spec.scenes * scale))) for spec in self.specs)
        capacity = {name: max(1, round(count * scale)) for name, count in self.capacity.items()}
        return replace(self, specs=specs, capacity=capacity)


WHOLE = Recipe(
    name="whole",
    specs=(
        Spec("clip", 64, 64, 5, scenes=32),
        Spec("long", 64, 64, 17, scenes=16),
        Spec("wide", 144, 80, 5, scenes=12),
        Spec("wide-long", 144, 80, 17, scenes=6),
    ),
    capacity={"clip": 64_000, "long": 24_000, "wide": 12_000, "wide-long": 9_000},  # 7 GB
    # A chunk of each takes about as long to draw.
    for_the_vae={"clip": 30.0, "long": 45.0, "wide": 5.0, "wide-long": 20.0},
    for_the_model={"clip": 45.0, "long": 20.0, "wide": 10.0, "wide-long": 15.0},
    asked=(
        Ask("clip", False, False, 30),
        Ask("clip", False, True, 14),
        Ask("clip", True, False, 7),
        Ask("clip", True, True, 3),
        Ask("long", False, False, 13),
        Ask("long", False, True, 7),
        Ask("wide", False, False, 6),
        Ask("wide", False, True, 3),
        Ask("wide", True, False, 3),
        Ask("wide", True, True, 1),
        Ask("wide-long", False, False, 8),
        Ask("wide-long", False, True, 5),
    ),
    held_out={"clip": 2, "long": 1},
    frames=17,
)

COLOURIST = Recipe(
    name="colourist",
    specs=(
        Spec("clip", 64, 64, 5, scenes=16, edits=6, looks=True),
        Spec("natural", 64, 64, 5, scenes=16, edits=6, references=0, natural=True),
        Spec("wide", 144, 80, 5, scenes=6, edits=6, looks=True),
        Spec("wide-natural", 144, 80, 5, scenes=6, edits=6, references=0, natural=True),
    ),
    capacity={"clip": 64_000, "natural": 64_000, "wide": 16_000, "wide-natural": 24_000},  # some 9 GB
    for_the_vae={"clip": 40.0, "natural": 40.0, "wide": 10.0, "wide-natural": 10.0},
    for_the_model={"clip": 35.0, "natural": 35.0, "wide": 10.0, "wide-natural": 20.0},
    asked=(
        Ask("clip", False, False, 22),
        Ask("clip", False, True, 7),
        Ask("clip", True, False, 12),
        Ask("natural", False, False, 20),
        Ask("natural", True, False, 15),
        Ask("wide", False, False, 4),
        Ask("wide", False, True, 2),
        Ask("wide-natural", False, False, 11),
        Ask("wide-natural", True, False, 7),
    ),
    held_out={"clip": 4, "natural": 4},
    frames=5,
    guide=1.0,  # at a tenth of that it was lost among the gradients of denoising
    visible=0.75,
    even=0.6,  # a look's colours are settled at noise levels above 0.85, where else a fifth of the draws would be
)
"""All kinds and the looks, on drawn scenes and on ones nearer to filmed clips, 5 frames at a time."""

COLOURIST_LONG = replace(
    COLOURIST,
    name="colourist-long",
    specs=(
        *COLOURIST.specs,
        Spec("long", 64, 64, 17, scenes=8, edits=4, looks=True),
        Spec("natural-long", 64, 64, 17, scenes=8, edits=4, references=0, natural=True),
        Spec("wide-natural-long", 144, 80, 17, scenes=3, edits=4, references=0, natural=True),
        Spec("things", 64, 64, 5, scenes=16, edits=6, looks=True, natural=True, things=True),
        Spec("wide-things", 144, 80, 5, scenes=6, edits=6, looks=True, natural=True, things=True),
        Spec("things-long", 64, 64, 17, scenes=8, edits=4, looks=True, natural=True, things=True),
    ),
    capacity={
        **COLOURIST.capacity,
        **{"long": 16_000, "natural-long": 16_000, "wide-natural-long": 6_000},
        **{"things": 48_000, "wide-things": 12_000, "things-long": 16_000},
    },
    for_the_vae={"clip": 10.0, "natural": 10.0, "long": 25.0, "natural-long": 30.0, "wide-natural-long": 15.0}
    | {"things": 5.0, "things-long": 10.0},
    for_the_model={**COLOURIST.for_the_model, "long": 15.0, "natural-long": 15.0, "wide-natural-long": 15.0}
    | {"things": 30.0, "wide-things": 20.0, "things-long": 20.0},
    asked=(
        *COLOURIST.asked,
        Ask("long", False, False, 15),
        Ask("long", False, True, 6),
        Ask("natural-long", False, False, 20),
        Ask("wide-natural-long", False, False, 12),
        Ask("things", False, False, 20),
        Ask("things", False, True, 6),
        Ask("things", True, False, 8),
        Ask("wide-things", False, False, 12),
        Ask("wide-things", False, True, 4),
        Ask("things-long", False, False, 16),
    ),
    held_out={**COLOURIST.held_out, "long": 2, "natural-long": 2, "things": 4},
    frames=17,
)
"""The same in clips of 17 frames too, for which the autoencoder has to be trained first, and with drawn things on
scenes nearer to filmed ones."""

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (WHOLE, COLOURIST, COLOURIST_LONG)}

HELD_OUT_SEED = 9_500_000
