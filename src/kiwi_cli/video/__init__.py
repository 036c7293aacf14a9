"""Video, pictures and sound in and out. Everything here is found on first use: importing this is free.

clip = probe("clip.mp4")
size = working_size(*clip.display_size)
span = select(clip, frames=81)
frames = np.stack([frame.rgb for frame in read_frames(clip, span, size=size)])
with open_writer("out.mp4", clip, span, size=size) as writer:
    writer.write(edit(frames))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiwi_cli.video.clip import AudioTrack, Clip, Colour
    from kiwi_cli.video.codecs import CODECS, QUALITIES, available_codecs
    from kiwi_cli.video.compare import COMPARES, Compare, write_sheet
    from kiwi_cli.video.damage import Damage
    from kiwi_cli.video.geometry import (
        FITS,
        LATENT_GRID,
        Fit,
        Framing,
        Size,
        framing,
        latent_frame_count,
        padded_frame_count,
        requested_size,
        size_of_area,
        working_size,
    )
    from kiwi_cli.video.glancing import glance
    from kiwi_cli.video.mask import Mask, load_mask
    from kiwi_cli.video.metadata import read_metadata
    from kiwi_cli.video.planning import check_output, container_of, for_output, refuse_source
    from kiwi_cli.video.probing import probe
    from kiwi_cli.video.reader import SourceFrame, read_frames
    from kiwi_cli.video.shots import Shots, find_shots
    from kiwi_cli.video.timeline import Span, check_numbers, select
    from kiwi_cli.video.walked import Walked
    from kiwi_cli.video.writer import FrameWriter, open_writer

_HOMES = {
    "clip": ("AudioTrack", "Clip", "Colour"),
    "codecs": ("CODECS", "QUALITIES", "available_codecs"),
    "compare": ("COMPARES", "Compare", "write_sheet"),
    "damage": ("Damage",),
    "geometry": (
        "FITS",
        "LATENT_GRID",
        "Fit",
        "Framing",
        "Size",
        "latent_frame_count",
        "padded_frame_count",
        "framing",
        "requested_size",
        "size_of_area",
        "working_size",
    ),
    "glancing": ("glance",),
    "mask": ("Mask", "load_mask"),
    "metadata": ("read_metadata",),
    "probing": ("probe",),
    "reader": ("SourceFrame", "read_frames"),
    "shots": ("Shots", "find_shots"),
    "timeline": ("Span", "check_numbers", "select"),
    "walked": ("Walked",),
    "planning": ("check_output", "container_of", "for_output", "refuse_source"),
    "writer": ("FrameWriter", "open_writer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CODECS",
    "COMPARES",
    "FITS",
    "LATENT_GRID",
    "QUALITIES",
    "AudioTrack",
    "Clip",
    "Colour",
    "Compare",
    "Damage",
    "Fit",
    "FrameWriter",
    "Framing",
    "Mask",
    "Shots",
    "Size",
    "SourceFrame",
    "Span",
    "Walked",
    "available_codecs",
    "check_numbers",
    "check_output",
    "container_of",
    "find_shots",
    "for_output",
    "framing",
    "glance",
    "latent_frame_count",
    "load_mask",
    "open_writer",
    "padded_frame_count",
    "probe",
    "read_frames",
    "read_metadata",
    "refuse_source",
    "requested_size",
    "select",
    "size_of_area",
    "working_size",
    "write_sheet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
