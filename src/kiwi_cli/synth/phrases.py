"""The templates of the instructions, kind by kind: what `wordings.py` draws from.

Each kind has frames and phrases that are crossed (`*` marks where the phrase goes), sentences of their own, and the
held-out ones: a tenth of all, written out here by hand, never drawn for training. Held-out sentences are new
combinations of words that the same kind's training sentences use, so they ask for understanding and not for luck.
Templates are written in lower case (but "I") without a full stop, in British spelling; a question keeps its mark.
"""

from __future__ import annotations

from typing import NamedTuple


class Wordings(NamedTuple):
    """The templates of one kind: those for training, and those kept back."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


_LOOK = (  # before an adjective
    "make the video *",
    "make it *",
    "please make this clip *",
    "make the whole clip look *",
    "I want the video to be *",
    "I would like this to look *",
    "could you make the footage *?",
    "let everything be *",
    "* please",
)
_INTO = (  # before a noun phrase
    "turn the video into *",
    "turn it into *",
    "please convert this clip to *",
    "change the footage into *",
    "I want the whole clip as *",
    "can you turn this into *?",
    "render everything as *",
    "make this video look like *",
)


def _cross(frames: tuple[str, ...], *phrases: str) -> tuple[str, ...]:
    return tuple(frame.replace("*", phrase) for phrase in phrases for frame in frames)


def _wordings(held_out: tuple[str, ...], *groups: tuple[str, ...]) -> Wordings:
    every = dict.fromkeys(template for group in groups for template in group)
    return Wordings(tuple(template for template in every if template not in held_out), held_out)


BLACK_AND_WHITE = _wordings(
    (
        "make it monochrome",
        "make the whole clip look black and white",
        "I want the video to be greyscale",
        "let everything be colourless",
        "turn it into an old silent film",
        "render everything as shades of grey",
        "take the colour out of the footage",
        "show me this clip in black and white, without any colour",
        "please convert the colours to greyscale",
        "drain the video until only black, white and grey are left",
    ),
    _cross(_LOOK, "black and white", "monochrome", "greyscale", "colourless"),
    _cross(_INTO, "a black and white film", "shades of grey", "an old silent film", "a monochrome picture"),
    (
        "black and white",
        "monochrome",
        "remove all colour from the video",
        "take the colour out",
        "drain the colour from the clip",
        "strip the colours away",
        "show the footage in black and white",
        "I would like to see it in greyscale",
        "no colour please",
        "without colour",
        "show it to me without any colour",
        "lose colours until only black, white and grey are left",
        "desaturate the whole video",
        "desaturate it completely",
        "convert to greyscale",
        "change all the colours to grey",
        "drained of colour, like an old silent film",
        "please take out every colour and leave it grey",
        "it should look as if it were filmed in black and white",
        "show this clip as a film from the days before colour",
    ),
)

SEPIA = _wordings(
    (
        "make it sepia",
        "please make this clip brown like an old photograph",
        "I want the video to be sepia toned",
        "can you turn this into a faded brown photograph?",
        "turn the video into an antique photograph",
        "give the footage an old brown tint",
        "add a warm sepia tone to everything",
        "tint it like a faded antique",
        "show the whole clip in warm brown tones",
        "a vintage sepia look please",
    ),
    _cross(_LOOK, "sepia", "sepia toned", "brown like an old photograph", "tinted a warm brown"),
    _cross(_INTO, "an old sepia photograph", "a faded brown photograph", "an antique photograph", "a sepia film"),
    (
        "sepia",
        "sepia tone",
        "old brown photograph look",
        "apply a sepia tone",
        "apply a sepia filter to the video",
        "add a sepia tint",
        "give it a warm sepia tone",
        "give the clip an old brown tint",
        "give everything the look of a vintage photograph",
        "tint the footage brown",
        "tint the whole clip in sepia",
        "show it in sepia",
        "show the video in faded brown tones",
        "I would like a vintage brown look",
        "I want warm brown tones, like an antique photograph",
        "age the video with a sepia tone",
        "it should look like a photograph from a very old album",
        "please use sepia colours for the whole video",
        "replace the colours with warm browns",
        "tone it brown, as old photographs are",
    ),
)

NIGHT = _wordings(
    (
        "make it dark as night",
        "please make this clip like a night scene",
        "I want the whole clip as a scene at night",
        "could you make the footage dark and blue?",
        "turn the video into a scene at midnight",
        "let a dark night fall in the scene",
        "change day to night",
        "show this as if it were filmed at midnight",
        "darken everything as if it were midnight",
        "I want to see the video in the dark of night",
    ),
    _cross(_LOOK, "dark as night", "dark as midnight", "dark and blue", "like a night scene"),
    _cross(_INTO, "a scene at night", "a dark night", "the dark of night", "a scene at midnight"),
    (
        "night",
        "at night",
        "make it night",
        "night time please",
        "make it night time in the video",
        "change the time of day to night",
        "turn day into night",
        "change the clip from day to night",
        "show the scene at night",
        "show it in the dark",
        "set the scene at midnight",
        "set the video at night",
        "let night fall",
        "let it get dark",
        "I want it to be night here",
        "I would like to see this in the dark of night",
        "darken the video as if the sun had gone",
        "darken it to a blue night",
        "the sun has set, so make everything dark",
        "it should look as if it were filmed at night",
        "please relight the footage as a scene at night",
        "give the clip the darkness of midnight",
        "turn off the daylight",
        "take the daylight away",
    ),
)

SNOW = _wordings(
    (
        "make it snow",
        "please add falling snow",
        "I want the video to be snowy",
        "make the whole clip look like a snowy day",
        "turn it into a snowy winter scene",
        "let snowflakes fall over everything",
        "fill the video with snowflakes",
        "could you add some snowfall to this?",
        "put falling snow in front of the scene",
        "change the weather in the clip to snow",
    ),
    _cross(_LOOK, "snowy", "full of falling snow", "like a snowy day"),
    _cross(_INTO, "a snowy winter scene", "a snowy day", "a snowfall", "a snowstorm"),
    (
        "snow",
        "snowfall",
        "falling snow please",
        "make it snow in the video",
        "let it snow",
        "let snow fall",
        "let snowflakes fall across the clip",
        "add snow",
        "add falling snow to the video",
        "add some snowflakes",
        "add a light snowfall in front of everything",
        "please add snow to this clip",
        "could you let it snow here?",
        "I want snow",
        "I would like to see snow falling",
        "put snow over the footage",
        "put snowflakes in the air",
        "fill the air with snow",
        "fill the scene with white snowflakes",
        "change the weather to snow",
        "change the weather to a snowstorm",
        "it should be snowing",
        "show the scene on a snowy winter day",
        "cover the video with falling flakes of snow",
        "bring winter and snow to the clip",
    ),
)

NEGATIVE = _wordings(
    (
        "make it inverted",
        "I want the whole clip as a negative",
        "turn the video into a photographic negative",
        "could you make the footage negative?",
        "invert all colours of this clip",
        "flip the colours of everything to their opposites",
        "show the video with inverted colours",
        "give it the look of a film negative",
        "reverse every colour in the video",
        "swap dark and light",
    ),
    _cross(_LOOK, "negative", "inverted", "like a negative", "opposite in colour"),
    _cross(_INTO, "a negative", "a film negative", "a photographic negative", "an inverted picture"),
    (
        "negative",
        "negative please",
        "invert",
        "invert the colours",
        "invert the video",
        "invert everything",
        "invert every colour in the clip",
        "please invert the colours of this video",
        "could you invert the footage?",
        "I want the colours inverted",
        "I would like inverted colours",
        "use inverted colours for the whole clip",
        "reverse the colours",
        "reverse all the colours of the footage",
        "flip the colours",
        "flip every colour to its opposite",
        "swap all colours for their opposites",
        "swap light and dark, and every colour with its opposite",
        "replace each colour with its opposite",
        "show it as a negative",
        "show the clip with all its colours reversed",
        "give the video the look of a photographic negative",
        "give it the inverted colours of undeveloped film",
        "light should be dark and dark should be light",
    ),
)

PENCIL = _wordings(
    (
        "make it sketched",
        "please convert this clip to a pencil drawing",
        "I would like this to look drawn in pencil",
        "turn the video into a hand drawn sketch",
        "make this video look like a drawing on paper",
        "draw it in pencil",
        "sketch the whole clip on paper",
        "redraw the footage as pencil lines",
        "show only the outlines of everything",
        "a sketch in pencil please",
    ),
    _cross(_LOOK, "sketched", "drawn in pencil", "hand drawn", "like a pencil sketch"),
    _cross(_INTO, "a pencil drawing", "a sketch", "a hand drawn sketch", "a drawing on paper", "pencil lines"),
    (
        "pencil",
        "pencil drawing",
        "pencil sketch please",
        "draw the video in pencil",
        "draw everything with a pencil",
        "please draw this as a sketch",
        "sketch it",
        "sketch the video",
        "sketch this clip in pencil",
        "could you sketch the whole scene?",
        "redraw it with pencil lines",
        "redraw the clip as a sketch on white paper",
        "show only the outlines",
        "show it as pencil outlines on paper",
        "show the footage as a drawing",
        "trace the outlines with a pencil",
        "trace everything in grey lines on white paper",
        "I want a pencil sketch of this",
        "I want to see it sketched on paper",
        "I would like a drawing of the video",
        "give the clip the look of a pencil drawing",
        "apply a pencil style",
        "use a pencil sketch style for the whole video",
        "an artist should have drawn it by hand",
    ),
)

POSTERISE = _wordings(
    (
        "make it posterised",
        "please make this clip flat like a poster",
        "turn the video into a poster",
        "I want the whole clip as a screen print",
        "reduce the clip to a few colours",
        "show everything in flat colours",
        "use only a few flat colours for the footage",
        "posterise the whole scene",
        "give the video the look of a screen print",
        "apply a posterise effect to it",
    ),
    _cross(_LOOK, "posterised", "flat like a poster", "like a poster with few colours", "like pop art"),
    _cross(_INTO, "a poster", "a poster in flat colours", "a screen print", "pop art"),
    (
        "posterise",
        "posterised",
        "poster effect please",
        "posterise it",
        "posterise the video",
        "posterise this clip please",
        "please posterise the colours",
        "could you posterise everything?",
        "apply a poster effect",
        "apply a posterise effect to the footage",
        "reduce it to a few colours",
        "reduce the number of colours",
        "reduce the colours of the video to a few flat steps",
        "use only a few colours",
        "use fewer colours for the whole clip",
        "show it in flat colours",
        "show the scene as a poster with few colours",
        "limit the palette",
        "limit the video to a small palette of flat colours",
        "I want flat colours",
        "I would like only a few flat colours in this",
        "give it a poster look",
        "give the clip the look of pop art",
        "flatten the colours into bands",
        "break the shades into a few flat bands of colour",
    ),
)
