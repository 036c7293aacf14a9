"""An everyday instruction in the words and the spelling that small models were trained with.

A model that learnt its words from some thousand sentences knows "make it brighter", and neither "BRIGHTEN IT" nor
"turn up the brightness a bit".
"""

from __future__ import annotations

import re

_IT = r"(?P<it>it|this|that|everything|the (?:\w+ )?(?:video|clip|footage|film|picture|image|photo|scene|shot))"
_MORE = r"(?:increase|boost|raise|crank up|turn up|pump up|up|enhance)"
_LESS = r"(?:decrease|reduce|lower|turn down|bring down|cut)"
_WHAT = r"(?: the)?(?: overall)? (?P<what>brightness|contrast|saturation|colou?rs?|warmth|exposure)"
_TOO = (
    r"^(?:please |can you |could you )?"
    r"(?:(?:it|this|that|the)(?: (?:video|clip|footage|picture|image|photo|scene))?(?: is|'?s)? |make (?:it|this) )?"
    r"(?P<how>(?:much|far|way|a bit|a little|slightly) )?(?:too|less|not (?:so|as|too)) "
)
_RULES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\bb\s*(?:&|/)\s*w\b", "black and white"),
        (r"\bnight ?time\b|\bnightfall\b", "night"),
        (r"\bcandlelight\b", "candle light"),
        (r"\bfoggier\b", "foggy"),
        (r"\bsnowier\b", "snowy"),
        (rf"{_TOO}(?:dark|dim|gloomy)\b", r"make it \g<how>brighter"),
        (rf"{_TOO}(?:bright|light)\b", r"make it \g<how>darker"),
        (rf"{_TOO}(?:warm|yellow|orange)\b", r"make it \g<how>cooler"),
        (rf"{_TOO}(?:cool|cold|blue)\b", r"make it \g<how>warmer"),
        (
            rf"^(?:make {_IT} )?(?P<how>(?:very|really|extremely|a bit|a little|slightly) )?(bright|warm|cool|cold)"
            r"(?: please)?$",
            r"make it \g<how>\g<3>er",
        ),
        (rf"^(?:make {_IT} |it is |it'?s )?(?P<how>a bit|a little|slightly|somewhat) dark$", r"make it \g<how> darker"),
        (r"^(?:(?:change|turn|convert) (?:it|this) )?(?:from )?colou?r to black", "turn it into black"),
        (rf"\bturn{_WHAT} up\b", r"give it more \g<what>"),
        (rf"\bturn{_WHAT} down\b", r"give it less \g<what>"),
        (r",?(?: and)? (?:please )?(?:can you )?(?:please )?fix (?:it|this|that)(?: please)?$", ""),
        (r"(?<=er),? (?:too|as well)$", ""),
        (r"\b(?:more )?vibrant\b", "more vivid"),
        (r"\btone down the colou?rs?\b", "give it less colour"),
        (r"\b(?:high|strong) saturation\b", "more saturation"),
        (r"\bstrong contrast\b", "more contrast"),
        (r"\bmore (fog|mist|snow)\b", r"\1"),
        (r"^snow$", "make it snowy"),
        (r"^noir$", "make it noir"),
        (r"\b(?:make )?(?:the |its |all )?colou?rs? (?:really )?pop(?: more)?\b", "make it more colourful"),
        (rf"\b(?:brighten|lighten)(?: up)? {_IT}(?: up)?\b", r"make \g<it> brighter"),
        (rf"\b(?:darken|dim)(?: down)? {_IT}(?: down)?(?! (?:to|into|as)\b)", r"make \g<it> darker"),
        (rf"\bwarm(?: up)? {_IT}(?: up)?\b", r"make \g<it> warmer"),
        (rf"\bcool(?: down)? {_IT}(?: down)?\b", r"make \g<it> cooler"),
        (r"\b(slightly|strongly) desaturate\b(?: (?:it|this))?", r"make it \1 less colourful"),
        (r"\bdesaturate (it|this)\b(?! completely)", r"make \1 less colourful"),
        (rf"\bsaturate {_IT}\b", r"make \g<it> more saturated"),
        (rf"\b{_MORE}{_WHAT}\b", r"give it more \g<what>"),
        (rf"\b{_LESS}{_WHAT}\b", r"give it less \g<what>"),
        (r"\bmore (?:colou?rs)\b", "more colour"),
        (r"\bless (?:colou?rs)\b", "less colour"),
        (r"\b(more|less) exposure\b", r"\1 brightness"),
        (r"\bdim\b(?= |$)", "darker"),
        (r"\b(?:the )?(?:19)?(?:70s|70's|'70s)\b", "the seventies"),
        (r"\b(high|low) contrast\b", r"\1er contrast"),
        (r"\b(?:vibes?|feel|style|aesthetic)\b", "look"),
    )
)


def plainly(text: str) -> str:
    """The instruction in small letters, without marks at its end, and with everyday turns in plain words."""
    found = " ".join(text.lower().split()).rstrip(" .!?")
    for pattern, words in _RULES:
        found = pattern.sub(words, found)
    return found
