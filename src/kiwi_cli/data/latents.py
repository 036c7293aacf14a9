"""Encode training rows once: `write_cache` takes clips from files or straight from a generator.

    write_cache(Path("cache"), items, Encoder.from_folder(model, device, dtype))

Every tensor's name is a hash of what it was made from, so clips that several rows share are encoded once, and a run
that was cut off goes on where it was: it asks for the same names and finds most of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.keys import content_key, digest
from kiwi_cli.data.rows import BadRow, check_bad
from kiwi_cli.data.shards import INDEX, SHARD_BYTES, CacheError, ShardReader, ShardWriter
from kiwi_cli.errors import DeviceError, KiwiError
from kiwi_cli.model.pictures import as_picture
from kiwi_cli.model.pixels import check_frames
from kiwi_cli.model.prompt import check_instruction

Split = Literal["train", "held_out"]
Picture = Image.Image | np.ndarray
Work = Callable[[list[Any]], list[torch.Tensor]]
"""Media of one kind and size -> a tensor each."""

QUEUED_BYTES = 2**30
"""Frames that wait for others of their size; beyond it the longest queue is encoded as it is."""


@dataclass(frozen=True)
class Item:
    """A row to be cached. Media are given, or as a function that loads them when they are not in the cache yet.

    Attributes:
        source, target: (F, H, W, 3) uint8 of one shape, H and W multiples of the model's size.
        prompt: the instruction.
        reference: a picture of any size.
        mask: (F, H, W) bool or uint8, where the target differs by intention.
        kind: free name, for figures per kind.
        split: None leaves it to `write_cache`.
        source_key, target_key, reference_key, mask_key: stand for the content, and for how it was prepared; None:
            a hash of the pixels is taken, which needs them given, not as a function.
        group: rows of one group are held out together; None: those with the same source.
        label: what errors call the row.
    """

    source: np.ndarray | Callable[[], np.ndarray]
    target: np.ndarray | Callable[[], np.ndarray]
    prompt: str
    reference: Picture | Callable[[], Picture] | None = None
    mask: np.ndarray | Callable[[], np.ndarray] | None = None
    kind: str = ""
    split: Split | None = None
    source_key: str | None = None
    target_key: str | None = None
    reference_key: str | None = None
    mask_key: str | None = None
    group: str | None = None
    label: str = ""


@dataclass
class CacheReport:
    """What a run did.

    Attributes:
        rows: in the cache now; held_out: how many of them.
        encoded: tensors that were made; found: that were there already.
        bad: 'row: reason' of the rows left out.
        repaired: damaged shards that were deleted, and their content encoded again.
        unused: shards with nothing in them that this index names.
    """

    rows: int = 0
    held_out: int = 0
    encoded: int = 0
    found: int = 0
    bad: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def write_cache(
    out: Path,
    items: Iterable[Item | BadRow],
    encoder: Encoder,
    *,
    held_out: float = 0.0,
    reference_views: int = 4,
    max_bad: float = 0.01,
    total: int | None = None,
    name: str = "",
    prune: bool = False,
    progress: Callable[[int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> CacheReport:
    """Encode items that are not in the cache yet, and write the index of all of them, in their order.

    Args:
        out: the cache's folder; made, or gone on with.
        held_out: fraction of the groups to hold out, by a hash of their names: a group's side does not depend on
            the other rows, save that at least one group is on each side. Items with a split of their own keep it.
        reference_views: latents of each reference, each shrunk by another draw.
        max_bad: fraction of the rows that may be bad, at least one row.
        total: number of items where it is known: then too many bad rows stop the run early.
        name: of the data set, for people; the folder's when empty.
        prune: delete shards that hold nothing that is named any more.
        progress: called with the number of items gone through.

    Raises:
        TableError: too many bad rows. CacheError: no rows, or the disk is full. What is encoded is kept.
    """
    reader = ShardReader(out, repair=True)
    run = _Run(ShardWriter(out, reader, shard_bytes), encoder, reference_views)
    run.report.repaired = reader.removed
    rows: list[dict[str, Any]] = []
    try:
        for number, item in enumerate(items, start=1):
            _take(run, item, item.label or f"row {number}", rows)
            if total is not None:
                check_bad(run.report.bad, total, max_bad)
            if progress is not None:
                progress(number)
        check_bad(run.report.bad, total or len(rows) + len(run.report.bad), max_bad)
        if not rows:
            raise CacheError("there are no rows to cache", "check the table")
        run.encode_all()
        rows = run.described(rows, max_bad)
    except BaseException:
        with contextlib.suppress(KiwiError):  # a second failure would hide the first
            run.writer.flush()
        raise
    split_rows(rows, held_out)
    settings = {**encoder.settings, "reference_views": reference_views}
    return _finished(run, {"name": name or out.resolve().name, "settings": settings, "rows": rows}, prune)


def encode_items(
    folder: Path,
    cache: Path,
    items: Iterable[Item | BadRow],
    encoder: Encoder,
    reference_views: int,
    tag: str,
    progress: Callable[[int], None],
) -> CacheReport:
    """Encode what of some items is not in a cache yet, into shards of another folder; there is no index.

    Args:
        folder: of the shards. cache: what is there already. tag: makes their names unlike all others.
        progress: called with the number of items gone through.
    """
    run = _Run(ShardWriter(folder, ShardReader(cache), tag=tag), encoder, reference_views)
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        _take(run, item, item.label or f"row {number}", rows)
        progress(number)
    run.encode_all()
    run.writer.flush()
    return run.report


def _take(run: _Run, item: Item | BadRow, label: str, rows: list[dict[str, Any]]) -> None:
    """Add an item's row, or its fault to the report's bad ones."""
    try:
        if isinstance(item, BadRow):
            raise KiwiError(item.reason)
        rows.append(run.take(item, label))
    except (CacheError, DeviceError):
        raise
    except KiwiError as error:
        run.report.bad.append(f"{label}: {error.message}")


def _finished(run: _Run, index: dict[str, Any], prune: bool) -> CacheReport:
    """The report of a cache whose index is written now."""
    rows = index["rows"]
    run.writer.finish(index | {"bad": run.report.bad})
    run.report.rows = len(rows)
    run.report.held_out = sum(row["split"] == "held_out" for row in rows)
    run.report.unused = run.writer.unused({key for row in rows for key in row["tensors"].values()}, prune)
    return run.report


def split_rows(rows: list[dict[str, Any]], fraction: float) -> None:
    """Give each row without one its split; takes out the `group`."""
    points = {row["group"]: int(digest("held out", row["group"])[:13], 16) / 16**13 for row in rows if not row["split"]}
    chosen = {group for group, point in points.items() if point < fraction}
    if fraction > 0 and len(points) > 1:  # neither side is empty
        ordered = sorted(points, key=lambda group: points[group])
        chosen = (chosen | {ordered[0]}) - {ordered[-1]}
    for row in rows:
        group = row.pop("group")
        row["split"] = row["split"] or ("held_out" if group in chosen else "train")


@dataclass
class _Queue:
    """Work of one kind and size, done together."""

    run: Work
    limit: int
    keys: list[str] = field(default_factory=list)
    media: list[Any] = field(default_factory=list)
    nbytes: int = 0


class _Run:
    """Queues of what is to be encoded, by kind and size."""

    def __init__(self, writer: ShardWriter, encoder: Encoder, views: int) -> None:
        self.writer, self.encoder, self.views = writer, encoder, views
        self.report = CacheReport()
        settings = encoder.settings
        self._latents = (settings["vae"], settings["store"])
        self._vision = (settings["vision"], settings["vision_dtype"], settings["store"])
        self._queues: dict[Any, _Queue] = {}
        self._queued: set[str] = set()

    def take(self, item: Item, label: str) -> dict[str, Any]:
        """The row of an item for the index; what it needs and is not there is queued.

        Raises:
            KiwiError: a prompt or media that cannot be used.
        """
        check_instruction(item.prompt, self.encoder.inputs.tokenizer)
        source_key = item.source_key or content_key(_given(item.source, "source"))
        target_key = item.target_key or content_key(_given(item.target, "target"))
        # A single frame is a picture in the prompt, unless there is a reference. How many frames a file has is not
        # known before it is read, so those are told apart by the reference alone.
        still = item.reference is None and (callable(item.source) or len(item.source) == 1)
        tensors = {
            "source": f"latents.{digest(*self._latents, source_key)}",
            "target": f"latents.{digest(*self._latents, target_key)}",
            "vision": f"vision.{digest(*self._vision, source_key, still)}",
        }
        if item.reference is not None:
            key = item.reference_key or content_key(np.asarray(as_picture(_given(item.reference, "reference"))))
            size = source_key if callable(item.source) else list(item.source.shape[1:3])
            tensors["reference"] = f"reference.{digest(*self._latents, key, size, self.views)}"
            tensors["picture"] = f"picture.{digest(*self._vision, key)}"
        if item.mask is not None:
            key = item.mask_key or content_key(_given(item.mask, "mask"))
            grid = [self.encoder.reduction, self.encoder.frames_per_latent]
            tensors["coverage"] = f"coverage.{digest(key, grid)}"
        missing = {name for name, key in tensors.items() if key not in self.writer and key not in self._queued}
        self.report.found += len(set(tensors)) - len(missing)
        if missing:
            self._load(item, tensors, missing)
        group = item.group or source_key
        return {
            "label": label,
            "prompt": item.prompt,
            "kind": item.kind,
            "split": item.split,
            "group": group,
            "tensors": tensors,
        }

    def _load(self, item: Item, tensors: dict[str, str], missing: set[str]) -> None:
        """Load what is needed, check it, and only then queue it."""
        source, target = _loaded(item.source), _loaded(item.target)
        check_frames(source, self.encoder.size_multiple)
        if source.shape != target.shape:
            raise KiwiError(f"the source is {_shape(source)}, the target {_shape(target)}")
        mask = _loaded(item.mask) if "coverage" in missing else None
        if mask is not None and mask.shape != target.shape[:3]:
            raise KiwiError(f"the mask is {_shape(mask)}, the target {_shape(target)}")
        reference = as_picture(_loaded(item.reference)) if missing & {"reference", "picture"} else None
        encoder, batch = self.encoder, self.encoder.batch_size(source)
        for name, clip in (("source", source), ("target", target)):
            if name in missing:
                self._queue(("latents", clip.shape), batch, encoder.latents, tensors[name], clip)
        if "vision" in missing:
            as_video = item.reference is not None
            self._queue(
                ("vision", source.shape, as_video),
                batch,
                lambda clips: encoder.vision(clips, as_video),
                tensors["vision"],
                source,
            )
        if reference is not None:
            height, width = source.shape[1:3]
            if "reference" in missing:

                def views(parts: list[Any]) -> list[torch.Tensor]:
                    pictures, seeds = [picture for picture, _ in parts], [seed for _, seed in parts]
                    return encoder.reference_views(pictures, width, height, seeds, self.views)

                kind, limit = ("views", (width, height)), max(1, batch // self.views)
                self._queue(kind, limit, views, tensors["reference"], (reference, tensors["reference"]))
            if "picture" in missing:
                limit = encoder.batch_size(np.asarray(reference)[None])
                self._queue(("picture", reference.size), limit, encoder.reference_vision, tensors["picture"], reference)
        if mask is not None:
            self._done([tensors["coverage"]], [encoder.coverage(mask)])

    def _queue(self, kind: Any, limit: int, run: Work, key: str, media: Any) -> None:
        if key in self.writer or key in self._queued:
            return
        queue = self._queues.setdefault(kind, _Queue(run, limit))
        queue.keys.append(key)
        queue.media.append(media)
        queue.nbytes += media.nbytes if isinstance(media, np.ndarray) else 0
        self._queued.add(key)
        if len(queue.keys) >= queue.limit:
            self._encode(kind)
        while sum(queue.nbytes for queue in self._queues.values()) > QUEUED_BYTES:
            self._encode(max(self._queues, key=lambda kind: self._queues[kind].nbytes))

    def _encode(self, kind: Any) -> None:
        queue = self._queues.pop(kind)
        self._done(queue.keys, queue.run(queue.media))

    def _done(self, keys: list[str], tensors: list[torch.Tensor]) -> None:
        # From here on an older index would not tell what is in the folder.
        (self.writer.folder / INDEX).unlink(missing_ok=True)
        for key, tensor in zip(keys, tensors, strict=True):
            self.writer.add(key, tensor)
            self._queued.discard(key)
        self.report.encoded += len(keys)

    def encode_all(self) -> None:
        """Encode what still waits for others of its size."""
        for kind in list(self._queues):
            self._encode(kind)

    def described(self, rows: list[dict[str, Any]], max_bad: float) -> list[dict[str, Any]]:
        """The rows whose tensors go together, with their mode.

        Files that were encoded for other rows are not read again, so a pair may prove unequal only here.
        """
        good, shapes = [], self.writer.shapes
        for row in rows:
            tensors = row["tensors"]
            source, target = shapes[tensors["source"]], shapes[tensors["target"]]
            if source != target:
                self.report.bad.append(f"{row['label']}: source and target differ in length or size")
                continue
            row["mode"] = "reference" if "reference" in tensors else "image" if source[1] == 1 else "video"
            good.append({key: row[key] for key in ("prompt", "kind", "split", "group", "mode", "tensors")})
        check_bad(self.report.bad, len(rows) + len(self.report.bad), max_bad)
        return good


def _given(media: Any, what: str) -> Any:
    if callable(media):
        raise ValueError(f"a {what} that is loaded when needed has a key of its own")
    return media


def _loaded(media: Any) -> Any:
    return media() if callable(media) else media


def _shape(frames: np.ndarray) -> str:
    """'5 frames of 64x64'."""
    count, height, width = frames.shape[:3]
    return f"{count} frame{'s' if count != 1 else ''} of {width}x{height}"
