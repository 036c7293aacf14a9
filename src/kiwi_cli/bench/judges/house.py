"""The house rubrics: how kiwi asks a judge for scores, in its own words.

They are not the published benchmarks' rubrics, and their scores are not comparable with published ones. `VERSION`
goes up with any change of a word, and every score carries it.
"""

from __future__ import annotations

VERSION = "house-1"

VIDEO_NAMES = ("Instruction", "Preservation", "Quality")
NAMES = {
    "subject": ("Likeness", "Steadiness", "Integration"),
    "background": ("Backdrop", "Cut-out", "Harmony"),
}
"""Score names by category of RefVIE-Bench; all other categories use `VIDEO_NAMES`."""

SCALE = """Score each question with a whole number from 1 to 5:
5 - nothing to object to, even when looking for faults;
4 - a small fault that must be looked for;
3 - a fault that anybody notices, the result is still usable;
2 - serious faults, little of what was wanted is there;
1 - it failed, or nothing of the kind was done."""

ANSWER = """Answer in exactly this form: first a line that begins with "Why:" and gives the reason in at most 40 words,
then one line for each score, nothing else:
{lines}"""

OPENING = {
    "video": "You compare two video clips: first the original, then the same clip after an edit.",
    "reference": "You compare three things, in this order: a reference picture, an original video clip, and the "
    "clip after an edit that was to use what the picture shows.",
    "image": "You compare two pictures: first the original, then the same picture after an edit.",
}

QUESTIONS = {
    "Instruction": "was exactly that done which the instruction asks for, everywhere and for the whole length?",
    "Preservation": "is everything the instruction does not speak of as it was: people, things, layout, camera?",
    "Quality": "does the result look real and clean, without flicker, seams, smears, warping or drifting texture?",
    "Likeness": "is what was put in recognisably the very thing in the reference picture: shape, colours, markings?",
    "Steadiness": "does it keep its shape and its texture from frame to frame, without melting or vanishing?",
    "Integration": "does it belong in the scene: does it follow the motion, cast shadows, pass behind things?",
    "Backdrop": "is the new background the one in the reference picture, and is the foreground all there, unchanged?",
    "Cut-out": "is the border between foreground and background clean and calm in every frame, hair and gaps included?",
    "Harmony": "do light, perspective, scale and depth of foreground and background agree, as if filmed together?",
}

CATEGORIES = {
    "global_style": "The edit is a change of style of the whole clip. Content, layout and motion should stay "
    "readable; that colours and textures change is wanted.",
    "background_change": "The edit replaces the background. The foreground should stay as it was, with clean edges, "
    "and the new background should move with the camera.",
    "local_change": "The edit changes or replaces one thing. Check that it is the right one, that nothing of the "
    "old one remains, and that the new one moves as the old one did.",
    "local_remove": "The edit removes something. Check that it is gone with its shadow and reflection, that nothing "
    "else is, and that what appears behind it is plausible and still.",
    "local_add": "The edit adds something. Check that it is there for the whole clip, in the right place and size, "
    "fixed to the scene, and lit like its surroundings.",
    "subtitle_edit": "The edit concerns text in the picture. Check the wording letter by letter, its place and its "
    "timing, and that the picture beneath is intact.",
    "creative_edit": "The edit is an invention that need not be possible. Judge whether the idea is carried out, "
    "and whether it is done convincingly.",
    "camera_edit": "The edit changes the camera: framing, distance, angle or movement. It should still be the same "
    "scene with the same people, things and actions.",
    "subject": "The edit puts the thing from the reference picture into the clip, or puts it in another's place.",
    "background": "The edit puts the scene of the reference picture behind the clip's foreground.",
}


def score_names(category: str) -> tuple[str, ...]:
    """What is scored for items of a category."""
    return NAMES.get(category, VIDEO_NAMES)


def rubric(category: str, instruction: str, kind: str) -> str:
    """The whole request in words.

    Args:
        kind: 'video', 'reference' or 'image'.
    """
    names = score_names(category)
    parts = [
        OPENING[kind],
        CATEGORIES.get(category, ""),
        "The instruction was:\n" + instruction,
        "\n".join(f"{name}: {QUESTIONS[name]}" for name in names),
        SCALE,
        "An edit that was not made cannot be preserved or of quality: if the first score is 1, so are the others.",
        ANSWER.format(lines="\n".join(f"{name}: <1 to 5>" for name in names)),
    ]
    return "\n\n".join(part for part in parts if part)
