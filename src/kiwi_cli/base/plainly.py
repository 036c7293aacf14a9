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
_RULES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\bb\s*(?:&|/)\s*w\b", "black and white"),
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
