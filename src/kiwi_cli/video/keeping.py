"""What becomes of each kind of thing that a file can hold, by the container of the output: the one table.

docs/clips.md shows it (`as_markdown`); the streams are planned by it; a test makes a file with each and compares.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Fate = Literal["kept", "converted", "dropped"]
COLUMNS = ("mp4", "mov", "mkv", "webm", "gif", "picture", "folder")
_HEADS = (".mp4", ".mov", ".mkv", ".webm", ".gif", ".png .jpg .webp", "folder")
_FATES: dict[str, Fate] = {"k": "kept", "c": "converted", "-": "dropped"}


class Row(NamedTuple):
    """A kind of thing. `fates`: one letter a column (k kept, c converted, - dropped)."""

    kind: str
    fates: str
    words: str


TABLE = (
    Row("size", "kkkkkkk", "what the model works at is scaled back"),
    Row("pixel aspect", "kkkcccc", "pixels become square where the container or codec has no field for it"),
    Row("rotation", "ccccccc", "written upright"),
    Row("interlacing", "ccccccc", "the result is progressive"),
    Row("frame times", "kkkkk-c", "variable rates too, and how long the last one stays; a folder has one even rate"),
    Row("frames hidden by an edit list", "-------", "they are no part of the clip"),
    Row("colour tags", "kkkkccc", "matrix, primaries, transfer, range; pictures and GIF are RGB"),
    Row("range", "kkkkccc", "full or limited; ProRes is limited"),
    Row("levels beyond the range", "kkkkccc", "where nothing is edited; an edited pixel has none"),
    Row(
        "chroma siting",
        "kkkkccc",
        "where codec or container carries it, else the samples are moved, not the colours",
    ),
    Row(
        "chroma subsampling",
        "ccccccc",
        "4:2:0; 4:2:2 with ProRes; FFV1 (.mkv) keeps the clip's; pictures have none",
    ),
    Row("depth", "cccccck", "8 bits; 10 with --codec hevc, av1 and prores; the clip's own with ffv1; 16 in PNG"),
    Row(
        "HDR transfer",
        "kkkkccc",
        "the model sees SDR (ITU-R BT.2446 A), its edits are mapped back; PNG has a cICP chunk",
    ),
    Row("HDR mastering display and light level", "-------", "kept with --codec hevc or av1 in software"),
    Row("dynamic HDR metadata", "-------", "HDR10+ and Dolby Vision describe the pictures that were"),
    Row("closed captions in the picture", "-------", "not the same as subtitle streams"),
    Row("spherical and stereoscopic marks", "-------", ""),
    Row(
        "transparency",
        "-----kk",
        "with the colours beneath it edited; where it is dropped, and in .jpg, what is edited is put on white",
    ),
    Row("sound", "kkkk---", "packets are copied where the container takes the codec, else encoded again; holes stay"),
    Row(
        "subtitles",
        "kkkk---",
        "moved with the span; .mp4 and .mov take mov_text, .webm WebVTT; others are dropped",
    ),
    Row("which track plays, commentary marks", "kkkk---", ".mp4 and .mov hold the first, not all of the others"),
    Row("language and title of a track", "kkkk---", ""),
    Row("cover picture", "k-k----", ""),
    Row("attachments", "--k----", "fonts and the like"),
    Row("second video stream", "-------", ""),
    Row("data streams", "-------", "timecodes, cameras' telemetry"),
    Row("text", "kkkk-k-", "title, date, place, and keys of a phone's own"),
    Row("chapters", "kkkk---", "when the whole clip is written"),
    Row("loop count", "----k--", "of a GIF; others play for ever as GIF"),
    Row("colour profile", "-----kk", "grey and CMYK pictures go through theirs to sRGB"),
    Row("EXIF", "-----k-", "without the orientation: the pixels are upright"),
    Row("XMP", "-----kk", ""),
    Row("resolution", "-----kk", ".webp has no field for it"),
)
_ROWS = {row.kind: row for row in TABLE}


def fate_of(kind: str, container: str) -> Fate:
    """What becomes of a kind of thing in an output container ('png', 'jpeg' and 'webp' are pictures)."""
    column = "picture" if container in ("png", "jpeg", "webp") else container
    return _FATES[_ROWS[kind].fates[COLUMNS.index(column)]]


def as_markdown() -> str:
    """The table as docs/clips.md has it."""
    lines = ["| | " + " | ".join(_HEADS) + " | |", "|" + "---|" * (len(_HEADS) + 2)]
    for row in TABLE:
        lines.append(f"| {row.kind} | " + " | ".join(_FATES[letter] for letter in row.fates) + f" | {row.words} |")
    return "\n".join(lines) + "\n"
