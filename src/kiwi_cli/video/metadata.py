"""The text a file carries about itself: what is kept, where kiwi's own goes, and how it is read back.

| container | where kiwi's own text goes |
|---|---|
| mp4, mov | the comment, or the next free standard tag; as its own key when the source has keys of its own |
| mkv, webm | a tag of that name |
| gif | a comment block |
| png, jpeg, webp | an iTXt entry, the comment, EXIF ImageDescription |
| folder | kiwi.json beside the frames |
"""

from __future__ import annotations

import os
from pathlib import Path

from kiwi_cli.video import gif
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.opening import check_input, open_media
from kiwi_cli.video.pictures import read_header, sniff
from kiwi_cli.video.sequences import read_record

_PREFIX = "kiwi:"
# Facts about the old file, not about what it shows.
_NOT_KEPT = {
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "duration",
    "handler_name",
    "vendor_id",
    "creation_time",
    "number_of_frames",
    "number_of_bytes",
    "bps",
}
# Tags that the MP4 muxer writes where players look for them.
_STANDARD = {
    "title",
    "artist",
    "album_artist",
    "composer",
    "album",
    "date",
    "comment",
    "genre",
    "copyright",
    "grouping",
    "lyrics",
    "description",
    "synopsis",
    "show",
    "episode_id",
    "network",
    "keywords",
    "location",
    "location-eng",
}
_SLOTS = ("comment", "description", "synopsis", "lyrics")


def output_tags(clip: Clip, extra: dict[str, str], container: str) -> tuple[dict[str, str], dict[str, str]]:
    """(tags, muxer options) for a video file: the clip's own text and `extra`, whose 'kiwi' entry comes back
    from `read_metadata` under that name."""
    tags = {k: v for k, v in clip.metadata.items() if k.lower() not in _NOT_KEPT and not v.startswith(_PREFIX)}
    tags = {k: v for k, v in tags.items() if not k.lower().startswith("_statistics") and k.lower() != "kiwi"}
    if "creation_time" in clip.metadata:
        tags["creation_time"] = clip.metadata["creation_time"]
    own = {k: v for k, v in extra.items() if k != "kiwi"}
    tags |= own
    if container not in ("mp4", "mov"):
        return tags | ({"kiwi": extra["kiwi"]} if "kiwi" in extra else {}), {}
    options = {"movflags": "+faststart"}
    own_keys = any(k.lower() not in _STANDARD and k != "creation_time" for k in tags)
    if own_keys or (container == "mov" and "kiwi" in extra and "comment" in tags):
        # Phones write keys of their own (com.apple.quicktime.*); the muxer keeps them only in this layout,
        # which has room for any name.
        options["movflags"] += "+use_metadata_tags"
        return tags | ({"kiwi": extra["kiwi"]} if "kiwi" in extra else {}), options
    if "kiwi" in extra:
        slot = next((name for name in _SLOTS if name not in tags), _SLOTS[-1])
        tags[slot] = _PREFIX + extra["kiwi"]
    return tags, options


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text in a video, picture or sequence, with lower-case names.

    What `open_writer` was given as metadata comes back under the same names; JPEG and WebP carry only
    'kiwi' or 'comment'.

    Raises:
        UsageError, MediaError: the path does not exist or cannot be read.
    """
    source = Path(path)
    if source.is_dir():
        return read_record(source)
    check_input(source)
    with source.open("rb") as file:
        head = file.read(16)
    if sniff(head):
        return dict(read_header(source).text)
    if head.startswith(b"GIF8"):
        return gif.comments(source.read_bytes())
    with open_media(source) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    for key, value in list(found.items()):
        if value.startswith(_PREFIX):
            del found[key]
            found["kiwi"] = value.removeprefix(_PREFIX)
    return found
