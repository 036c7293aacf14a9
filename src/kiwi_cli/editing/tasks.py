"""What an instruction becomes before the model reads it: a sentence for the kind of edit, and a default for references.

The released models edit better when the instruction also says what should stay. These sentences say it.
"""

from __future__ import annotations

from kiwi_cli.errors import UsageError

HINTS = {
    "style": (
        "Keep every person, object, movement and camera motion as it is, "
        "and hold the new style steady from the first frame to the last."
    ),
    "background": (
        "Leave everything in the foreground exactly as it is, with clean edges, "
        "and let the new background move with the camera."
    ),
    "change": "Change nothing but that: keep its place, pose and movement, and the rest of the picture.",
    "remove": (
        "Fill the place with what would be seen behind it, the same in every frame, and leave everything else as it is."
    ),
    "add": (
        "Let it stay fixed to its place as things move, lit and shaded like the scene around it, "
        "and leave everything else as it is."
    ),
}
"""Kind of edit -> what is added to the instruction."""

REPLACEMENTS = {
    "subject": "Replace the main subject of the video with the one in the reference image.",
    "background": "Replace the background of the video with the one in the reference image.",
}
"""`ref-edit` without an instruction: what the reference replaces -> the instruction."""


def final_instruction(text: str, task: str | None = None, raw: bool = False) -> str:
    """What the model is told.

    Args:
        text: as the person typed it.
        task: one of `HINTS`, whose sentence is added.
        raw: not a character is changed; otherwise line breaks and double spaces become single spaces.

    Raises:
        UsageError: nothing is said, the kind is not known, or `raw` is asked for together with a kind.
    """
    if not text.strip():
        raise UsageError("the instruction is empty", 'say what to change, for example "make it snowy"')
    if task is not None and task not in HINTS:
        raise UsageError(f"unknown --task: '{task}'", f"use one of {', '.join(HINTS)}")
    if raw and task is not None:
        raise UsageError(f"--raw and --task {task} exclude each other", "--raw adds nothing to the instruction")
    if raw:
        return text
    said = " ".join(text.split())
    if task is None:
        return said
    return f"{said}{'' if said[-1] in '.!?' else '.'} {HINTS[task]}"
