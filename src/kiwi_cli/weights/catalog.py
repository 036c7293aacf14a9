"""The models by name, released and embedded: where each one is, what it is for and how it scored.

One frozen table; everything that depends on which model it is reads it from here or from the checkpoint's own
configs, never from a substring of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QWEN_REPO = "Qwen/Qwen2.5-VL-3B-Instruct"
WAN_REPO = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
"""Base models of the raw training checkpoints."""

RELEASED_BYTES = 18_989_800_888
"""Tensors of a released 5B checkpoint in bf16, from its keys and shapes; the tokenizer adds about 0.02 GB."""

LICENCE = "code: MIT (showlab/Kiwi-Edit); parts: Wan 2.2 Apache-2.0, Qwen2.5-VL-3B Qwen Research (non-commercial)"

FIRST_PAGE = "project page, first version"
NEWER_PAGE = "project page, newer version (index.html at 178f3f4)"

OPENVE = ("style", "background", "local change", "remove", "add")
REFVIE = ("identity", "temporal", "physical", "reference similarity", "matting", "quality")


@dataclass(frozen=True)
class Score:
    """One published result.

    Attributes:
        benchmark, judge: what was measured, and which model judged it.
        overall: as the source prints it.
        average: what `overall` is the mean of. Never compare across different ones.
        columns: (category, score).
        source: where it was printed.
    """

    benchmark: str
    judge: str
    overall: float
    average: str
    columns: tuple[tuple[str, float], ...]
    source: str


def _openve(overall: float, columns: tuple[float, ...], source: str) -> Score:
    named = tuple(zip(OPENVE, columns, strict=True))
    return Score("OpenVE-Bench", "Gemini-2.5-Pro", overall, "mean of 5 categories", named, source)


def _refvie(overall: float, average: str, columns: tuple[float, ...], source: str) -> Score:
    return Score(
        "RefVIE-Bench", "Gemini-3-flash-preview", overall, average, tuple(zip(REFVIE, columns, strict=True)), source
    )


_STAGE2_480P = (
    _openve(2.92, (3.54, 2.59, 3.80, 2.55, 2.12), NEWER_PAGE),
    _openve(2.92, (3.54, 3.80, 2.59, 2.55, 2.12), FIRST_PAGE),  # two columns the other way round: as printed
)
_STAGE2_720P = (
    _openve(2.98, (3.54, 2.57, 3.84, 2.71, 2.25), NEWER_PAGE),
    _openve(2.98, (3.54, 3.84, 2.57, 2.71, 2.25), FIRST_PAGE),
)
_STAGE3 = (
    _openve(3.11, (3.72, 2.67, 3.91, 2.69, 2.55), NEWER_PAGE),
    _openve(3.02, (3.64, 2.64, 3.83, 2.63, 2.36), FIRST_PAGE),
    _refvie(2.96, "mean of 6 columns", (3.51, 2.96, 2.91, 3.40, 2.58, 2.40), FIRST_PAGE),
)
_STAGE3_REFERENCE = (
    _refvie(3.40, "mean over items", (4.28, 3.61, 3.55, 3.33, 2.35, 2.08), NEWER_PAGE),
    _refvie(3.31, "mean of 6 columns", (3.98, 3.40, 3.34, 3.72, 2.90, 2.51), FIRST_PAGE),
)


@dataclass(frozen=True)
class Variant:
    """One model.

    Attributes:
        name: what `--model` takes.
        repo, revision: where it is on the Hub; an embedded model has none.
        kind: 'released' (a complete checkpoint), 'raw' (trained parameters only: converted with the base models) or
            'embedded' (its weights lie in the package). What an embedded model is good for stands in its own folder
            (`weights.settings`), so that nothing is offered here that it was not found to do.
        tasks: which commands it is for.
        summary: one line for lists.
        size: width and height it was trained and scored at; frames: how many at most.
        bytes: what is fetched, when known.
        references_first: where the reference tokens go; raw checkpoints do not say it themselves.
        scores: published, the newest first.
    """

    name: str
    repo: str
    kind: Literal["released", "raw", "embedded"]
    tasks: tuple[str, ...]
    summary: str
    size: tuple[int, int] = (1280, 704)
    frames: int = 81
    bytes: int | None = None
    references_first: bool = False
    scores: tuple[Score, ...] = ()
    licence: str = LICENCE
    revision: str = "main"


_RAW = "linyq/wan2.2_ti2v_5b_qwen25vl_3b_"

VARIANTS = (
    Variant(
        "instruct-reference",
        "linyq/kiwi-edit-5b-instruct-reference-diffusers",
        "released",
        ("edit", "ref-edit"),
        "5B, instructions and references; best published score for instruction edits",
        bytes=RELEASED_BYTES,
        scores=_STAGE3,
    ),
    Variant(
        "reference-only",
        "linyq/kiwi-edit-5b-reference-only-diffusers",
        "released",
        ("ref-edit",),
        "5B, trained on reference edits alone; best published score for reference edits",
        bytes=RELEASED_BYTES,
        references_first=True,
        scores=_STAGE3_REFERENCE,
    ),
    Variant(
        "instruct-only",
        "linyq/kiwi-edit-5b-instruct-only-diffusers",
        "released",
        ("edit",),
        "5B, instructions only",
        bytes=RELEASED_BYTES,
        scores=_STAGE2_720P,
    ),
    Variant(
        "stage1-image",
        f"{_RAW}stage1_img_only",
        "raw",
        ("edit",),
        "first training stage: pictures only",
        size=(1024, 1024),
        frames=1,
    ),
    Variant(
        "stage2-480p",
        f"{_RAW}stage2_img_vid_600x600_81f",
        "raw",
        ("edit",),
        "second stage: pictures and video at 600x600 pixels",
        size=(720, 480),
        scores=_STAGE2_480P,
    ),
    Variant(
        "stage2-720p",
        f"{_RAW}stage2_img_vid_720x1280_81f",
        "raw",
        ("edit",),
        "second stage at 720p",
        scores=_STAGE2_720P,
    ),
    Variant(
        "stage3-720p",
        f"{_RAW}stage3_img_vid_refvid_720x1280_81f",
        "raw",
        ("edit", "ref-edit"),
        "third stage: pictures, video and references",
        scores=_STAGE3,
    ),
    Variant(
        "stage3-reference",
        f"{_RAW}stage3_refvid_only_720x1280_81f_pad_first",
        "raw",
        ("ref-edit",),
        "third stage on references alone, reference tokens first",
        references_first=True,
        scores=_STAGE3_REFERENCE,
    ),
    Variant(
        "tiny",
        "",
        "embedded",
        ("edit", "ref-edit"),
        "small, part of kiwi itself: runs on any CPU, without a network",
        licence="Apache-2.0: trained from scratch by this project",
    ),
)

DEFAULT_EDIT = "instruct-reference"
DEFAULT_REF_EDIT = "reference-only"


def find_variant(name: str) -> Variant | None:
    """The variant of that name or repository, or None."""
    return next((v for v in VARIANTS if name and name in (v.name, v.repo)), None)


def complete_names(incomplete: str) -> list[tuple[str, str]]:
    """Names that begin so, with their summaries, for the shell."""
    return [(v.name, v.summary) for v in VARIANTS if v.name.startswith(incomplete)]
