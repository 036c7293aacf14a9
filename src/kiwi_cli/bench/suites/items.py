"""What a benchmark is made of: its name, its categories, and items with ids that stay the same. Plain data."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from kiwi_cli.errors import UsageError


@dataclass(frozen=True)
class Benchmark:
    """One data set and how its results are read.

    Attributes:
        name: of the command. title: as published. about: in a sentence.
        repo: on the Hub. table: the file that lists the items. patterns: files to fetch.
        form: of the table. columns: what an item has ('type', 'instruction', 'source', and 'reference' where it has a
            picture) -> the table's field. folders: where the files that it names may lie.
        archive: that the files come in; empty when they lie open.
        licence: as its card says; asked of the Hub again before fetching.
        bytes, count: of the whole data set, when known.
        categories: all that may occur; empty means whatever the table names.
        headline: the categories that the published overall is made of; empty means all.
        counts: items of a category, where they are published.
        kind: what is edited.
        model: the variant that is edited with when none is named.
        axes: of a run's picture in the report.
    """

    name: str
    title: str
    about: str
    repo: str
    table: str
    form: Literal["csv", "yaml", "json"]
    columns: dict[str, str]
    patterns: tuple[str, ...]
    licence: str
    categories: tuple[str, ...]
    headline: tuple[str, ...]
    kind: Literal["video", "image"]
    model: str
    count: int | None = None
    bytes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    folders: tuple[str, ...] = ("",)
    archive: str = ""
    axes: Literal["categories", "columns"] = "columns"

    def headline_categories(self, present: Iterable[str]) -> tuple[str, ...]:
        """The categories that count for the headline, in their order."""
        return self.headline or tuple(sorted(set(present)))


BENCHMARKS = {
    "openve": Benchmark(
        name="openve",
        title="OpenVE-Bench",
        about="431 instruction edits of video, eight types",
        repo="Lewandofski/OpenVE-Bench",
        table="benchmark_videos.csv",
        form="csv",
        columns={"type": "edited_type", "instruction": "prompt", "source": "original_video"},
        folders=("", "videos"),
        axes="categories",
        patterns=("benchmark_videos.csv", "videos/*", "README.md"),
        licence="cc-by-nc-4.0",
        categories=(
            "global_style",
            "background_change",
            "local_change",
            "local_remove",
            "local_add",
            "subtitle_edit",
            "creative_edit",
            "camera_edit",
        ),
        headline=("global_style", "background_change", "local_change", "local_remove", "local_add"),
        kind="video",
        model="instruct-reference",
        count=431,
        bytes=507_000_000,
    ),
    "refvie": Benchmark(
        name="refvie",
        title="RefVIE-Bench",
        about="110 edits of video with a reference picture",
        repo="linyq/RefVIE-Bench",
        table="refvie_bench.yaml",
        form="yaml",
        columns={"source": "src_video", "instruction": "instruction", "reference": "ref_img", "type": "edit_type"},
        folders=("", "source_videos", "ref_images"),
        patterns=("refvie_bench.yaml", "ref_images/*", "source_videos/*", "README.md"),
        licence="see its card",
        categories=("subject", "background"),
        headline=("subject", "background"),
        kind="video",
        model="reference-only",
        count=110,
        counts={"subject": 70, "background": 40},
    ),
    "imgedit": Benchmark(
        name="imgedit",
        title="ImgEdit",
        about="edits of pictures, single turn",
        repo="sysuyy/ImgEdit",
        table="singleturn.json",
        form="json",
        columns={"source": "id", "instruction": "prompt", "type": "edit_type"},
        archive="Benchmark.tar",
        patterns=("Benchmark.tar", "README.md"),
        licence="see its card",
        categories=(),
        headline=(),
        kind="image",
        model="instruct-reference",
    ),
}


@dataclass(frozen=True)
class Item:
    """One edit to make and to judge.

    Attributes:
        id: file-name safe, unique in its data set, the same on every machine.
        source, reference: paths relative to the data set's folder, with '/'.
    """

    id: str
    category: str
    instruction: str
    source: str
    reference: str | None = None


def item_id(category: str, instruction: str, source: str, reference: str | None = None) -> str:
    """An id from what the item is, not from where it stands: 'videos/a b.mp4' -> 'a-b-1f0c9a2e'.

    The hash keeps items apart that share a file name, or a clip.
    """
    stem = source.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "item"
    parts = [category, instruction, unicodedata.normalize("NFC", source), reference]
    return f"{slug}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]}"


def digest(items: Sequence[Item]) -> str:
    """Stands for the whole list: two runs are of the same data when it is equal."""
    text = json.dumps([[i.id, i.category, i.instruction, i.source, i.reference] for i in items])
    return hashlib.sha256(text.encode()).hexdigest()


def count_categories(items: Iterable[Item]) -> dict[str, int]:
    """Items of each category, by name."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item.category] = counts.get(item.category, 0) + 1
    return dict(sorted(counts.items()))


def choose(
    items: Sequence[Item],
    categories: Sequence[str] = (),
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> list[Item]:
    """The part of a data set to work on, in its order.

    Args:
        categories: only these; all if empty.
        limit: at most this many, taken from the categories in turn so that few items still cover all.
        shard: (i, n) takes the i-th of n parts, i from 1.

    Raises:
        UsageError: a category that no item has.
    """
    present = count_categories(items)
    for name in categories:
        if name not in present:
            raise UsageError(f"unknown category: '{name}'", f"use one of {', '.join(present)}")
    chosen = [item for item in items if not categories or item.category in categories]
    if limit is not None:
        columns = [[item for item in chosen if item.category == name] for name in present]
        turns = [item for row in zip_longest(*columns) for item in row if item is not None]
        kept = {item.id for item in turns[:limit]}
        chosen = [item for item in chosen if item.id in kept]
    if shard is not None:
        index, count = shard
        chosen = chosen[index - 1 :: count]
    return chosen
