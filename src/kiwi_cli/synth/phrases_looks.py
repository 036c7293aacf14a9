"""The templates of the looks' instructions.

Three slots take the strength, and are empty where none is asked for: `{how}` before an adjective ("slightly "),
`{more}` before a comparative ("much "), `{so}` at the end (", just a little"). Phrases and frames are crossed as in
`phrases.py`; every tenth sentence is held out, so that each word of a held-out one is in others that are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kiwi_cli.synth.phrases import Wordings

STRENGTHS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "slight": {
            "how": ("slightly ", "a little ", "a bit ", "somewhat "),
            "more": ("slightly ", "a little ", "a bit ", "somewhat "),
            "so": (", just a little", ", only slightly", ", a bit", ", subtly"),
        },
        "plain": {"how": ("",), "more": ("",), "so": ("",)},
        "strong": {
            "how": ("very ", "strongly ", "extremely ", "really "),
            "more": ("much ", "a lot ", "far ", "strongly "),
            "so": (", strongly", ", very strongly", ", a lot", ", as much as you can"),
        },
    }
)
"""Strength -> slot -> what may stand there."""

_BE = (  # before an adjective
    "make the video *",
    "make it *",
    "please make this clip *",
    "make the whole clip look *",
    "I want the video to be *",
    "I would like this to look *",
    "could you make the footage *?",
    "let everything be *",
)
_LIKE = (  # before what it should look like
    "make it look like *",
    "turn the video into *",
    "turn it into *",
    "please make this clip look like *",
    "change the footage into *",
    "can you make this look like *?",
    "I want it to look like *",
)
_GIVE = (  # before what it should have
    "give it *",
    "give the video *",
    "please give this clip *",
    "add * to the video",
    "I want * in this clip",
    "can you give the footage *?",
    "put * over everything",
)


def _look(
    be: tuple[str, ...] = (), like: tuple[str, ...] = (), give: tuple[str, ...] = (), slot: str = "how"
) -> Wordings:
    every: list[str] = []
    every += [frame.replace("*", f"{{{slot}}}{phrase}") for phrase in be for frame in _BE]
    for frames, phrases in ((_LIKE, like), (_GIVE, give)):
        for phrase in phrases:
            for frame in frames:
                question = frame.endswith("?")
                text = frame.removesuffix("?").replace("*", phrase) + "{so}" + ("?" if question else "")
                every.append(text)
    every = list(dict.fromkeys(every))
    held_out = tuple(every[4::10])
    return Wordings(tuple(text for text in every if text not in held_out), held_out)


GOLDEN_HOUR = _look(
    ("golden", "sunlit and golden", "bathed in gold"),
    ("golden hour", "the golden hour", "late afternoon in golden light"),
    ("golden hour light", "a golden glow", "golden evening sun"),
)
SUNSET = _look(
    ("sunset coloured", "lit by the sunset"),
    ("a sunset", "a red sunset", "an evening at sundown", "dusk with a red sky"),
    ("sunset light", "the colours of a sunset", "a red evening sky"),
)
BLUE_HOUR = _look(
    ("twilight blue", "like twilight"),
    ("the blue hour", "twilight", "blue hour after sunset", "early dawn in blue light"),
    ("blue hour light", "blue twilight"),
)
OVERCAST = _look(
    ("overcast", "cloudy", "dull and grey"),
    ("an overcast day", "a cloudy day", "a grey day without sun"),
    ("a cloudy sky", "flat grey light"),
)
FOG = _look(
    ("foggy", "misty", "hazy"),
    ("a foggy morning", "thick fog"),
    ("fog", "thick mist", "a veil of mist"),
)
WINTER = _look(
    ("wintry", "frosty", "icy and cold"),
    ("winter", "a cold winter day", "a frosty morning"),
    ("winter light", "cold winter sun"),
)
AUTUMN = _look(
    ("autumnal", "autumn coloured"),
    ("autumn", "fall", "a day in october", "autumn with brown leaves"),
    ("autumn colours", "the colours of fall", "orange leaves"),
)
MOONLIGHT = _look(
    ("moonlit", "silver in the moonlight"),
    ("a moonlit night", "a full moon night", "a scene lit by the moon"),
    ("moonlight", "silver moonlight", "the light of a full moon"),
)
CANDLE_LIGHT = _look(
    ("candlelit", "lit by candles", "lit by a fire"),
    ("a candlelit room", "a room with one candle"),
    ("candle light", "the glow of a candle", "warm firelight"),
)
UNDERWATER = _look(
    ("underwater", "submerged", "deep under water"),
    ("an underwater scene", "the bottom of the sea", "a dive in the ocean"),
    ("an underwater look", "deep sea light"),
)
DESERT = _look(
    ("sandy", "dusty", "full of sand"),
    ("a desert", "a sandstorm", "the sahara"),
    ("desert light", "sand in the air", "a dusty desert look"),
)
VINTAGE = _look(
    ("vintage", "retro", "faded like an old print"),
    ("a vintage film", "an old home movie", "a faded photograph from the seventies"),
    ("a vintage film look", "a retro look"),
)
NOIR = _look(
    ("noir", "dark and dramatic in black and white"),
    ("film noir", "a noir film", "a detective film of the forties", "a noir thriller"),
    ("a film noir look", "hard noir shadows"),
)
TEAL_AND_ORANGE = _look(
    ("teal and orange", "graded like a blockbuster"),
    ("a blockbuster in teal and orange", "a hollywood blockbuster"),
    ("a teal and orange grade", "the teal and orange look", "a blockbuster grade", "teal shadows and orange lights"),
)
HIGH_KEY = _look(
    ("high key", "airy and white", "flooded with white light"),
    ("a high key photograph", "a bright white studio"),
    ("high key lighting", "a high key look", "white studio light"),
)
LOW_KEY = _look(
    ("low key", "mostly black", "full of deep shadows"),
    ("a low key photograph", "a dark studio with one light"),
    ("low key lighting", "a low key look", "deep black shadows"),
)
NEON = _look(
    ("neon", "lit by neon signs", "cyberpunk"),
    ("a neon city", "a cyberpunk film", "a club with neon lights"),
    ("neon lights", "a cyberpunk look", "magenta and cyan neon"),
)
INFRARED = _look(
    ("infrared", "false coloured"),
    ("an infrared photograph", "infrared film", "false colour infrared film"),
    ("an infrared look", "infrared colours", "false colours of infrared film"),
)
PASTEL = _look(
    ("pastel", "soft and pastel coloured", "softly pink"),
    ("a pastel drawing in soft colours", "a dream in pastel"),
    ("pastel colours", "soft pastel tones", "a pastel look"),
)
BLEACH_BYPASS = _look(
    ("bleach bypassed", "gritty and silvery"),
    ("a bleach bypass print", "film with the bleach skipped"),
    ("a bleach bypass look", "the bleach bypass effect", "a gritty silver look", "a bleach bypass grade"),
)
CROSS_PROCESS = _look(
    ("cross processed", "lomo"),
    ("cross processed film", "a lomo photograph"),
    ("a cross processed look", "the cross process effect", "lomo colours", "cross processed colours"),
)
BRIGHTER = _look(
    ("brighter", "lighter", "better lit"),
    give=("more light", "more brightness", "a brighter picture", "a higher exposure"),
    slot="more",
)
DARKER = _look(
    ("darker", "dimmer", "less bright"),
    give=("less light", "less brightness", "a darker picture", "a lower exposure"),
    slot="more",
)
WARMER = _look(
    ("warmer", "warmer in colour", "yellower"),
    give=("warmer colours", "a warmer white balance", "warmer tones", "more warmth"),
    slot="more",
)
COOLER = _look(
    ("cooler", "colder", "cooler in colour"),
    give=("cooler colours", "a colder white balance", "cooler tones", "a cold look"),
    slot="more",
)
MORE_COLOUR = _look(
    ("more colourful", "more saturated", "more vivid"),
    give=("more colour", "more saturation", "stronger colours", "richer colours"),
    slot="more",
)
LESS_COLOUR = _look(
    ("less colourful", "less saturated", "paler in colour"),
    give=("less colour", "less saturation", "weaker colours", "muted colours"),
    slot="more",
)
MORE_CONTRAST = _look(
    ("more contrasty", "punchier", "crisper in contrast"),
    give=("more contrast", "stronger contrast", "a higher contrast", "hard contrast"),
    slot="more",
)
LESS_CONTRAST = _look(
    ("less contrasty", "flatter", "softer in contrast"),
    give=("less contrast", "weaker contrast", "a lower contrast", "soft contrast"),
    slot="more",
)
TINT = _look(
    ("tinted {colour}", "toned {colour}", "{colour}", "all {colour}"),
    give=("a {colour} tint", "a {colour} cast", "a {colour} filter", "{colour} light"),
)

TWO_LOOKS = _look(("{first} and {second}", "both {first} and {second}", "{first} but also {second}"))
ADJECTIVES: Mapping[str, str] = MappingProxyType(
    {
        "brighter": "brighter",
        "darker": "darker",
        "warmer": "warmer",
        "cooler": "cooler",
        "more-colour": "more colourful",
        "less-colour": "less colourful",
        "more-contrast": "more contrasty",
        "less-contrast": "less contrasty",
        "fog": "foggy",
        "autumn": "autumnal",
        "winter": "wintry",
        "vintage": "vintage",
        "overcast": "cloudy",
        "underwater": "underwater",
        "pastel": "pastel",
    }
)
"""Looks that are asked for together with another, as an instruction calls them then."""

LOOK_WORDINGS: Mapping[str, Wordings] = MappingProxyType(
    {
        "golden-hour": GOLDEN_HOUR,
        "sunset": SUNSET,
        "blue-hour": BLUE_HOUR,
        "overcast": OVERCAST,
        "fog": FOG,
        "winter": WINTER,
        "autumn": AUTUMN,
        "moonlight": MOONLIGHT,
        "candle-light": CANDLE_LIGHT,
        "underwater": UNDERWATER,
        "desert": DESERT,
        "vintage": VINTAGE,
        "noir": NOIR,
        "teal-and-orange": TEAL_AND_ORANGE,
        "high-key": HIGH_KEY,
        "low-key": LOW_KEY,
        "neon": NEON,
        "infrared": INFRARED,
        "pastel": PASTEL,
        "bleach-bypass": BLEACH_BYPASS,
        "cross-process": CROSS_PROCESS,
        "brighter": BRIGHTER,
        "darker": DARKER,
        "warmer": WARMER,
        "cooler": COOLER,
        "more-colour": MORE_COLOUR,
        "less-colour": LESS_COLOUR,
        "more-contrast": MORE_CONTRAST,
        "less-contrast": LESS_CONTRAST,
        "tint": TINT,
        "two-looks": TWO_LOOKS,
    }
)
