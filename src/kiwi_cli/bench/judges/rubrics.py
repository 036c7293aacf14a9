"""Rubrics: our own, or the benchmark authors' read from their file as data.

The authors' text is not part of kiwi. It comes from a file the person names, or from the published one at a fixed
commit, whose hash must be right. The file is Python; it is parsed, never run.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kiwi_cli.bench.judges import house
from kiwi_cli.errors import KiwiError, UsageError

COMMIT = "223572d791c5a68c04786b95cc1910e302e935a4"
PUBLISHED = {
    "openve": ("eval_openve_gemini.py", "0d419b8368a6fe0c3869dfd945f0f8586e16a30bd37bf197fa7f81fe038e2f6d"),
    "refvie": ("eval_refvie_gemini.py", "d5a9039e563e241fbe39ac3be8e479e372339c5fce42d469b32bc4f90a815065"),
}
"""Benchmark -> file of showlab/Kiwi-Edit at `COMMIT`, sha256."""

RAW = "https://raw.githubusercontent.com/showlab/Kiwi-Edit"
MOST_BYTES = 1_000_000

Found = TypeVar("Found")

# How the file's constants are named, beside the mapping that it may hold itself.
CONSTANTS = {
    "openve": {
        "GLOBAL_STYLE": "global_style",
        "BACKGROUND_CHANGE": "background_change",
        "LOCAL_CHANGE": "local_change",
        "LOCAL_REMOVE": "local_remove",
        "LOCAL_ADD": "local_add",
        "SUBTITLES_EDIT": "subtitle_edit",
        "CREATIVE_EDIT": "creative_edit",
        "CAMERA_MULTI_SHOT_EDIT": "camera_edit",
    },
    "refvie": {"SUBJECT_REFERENCE_PROMPT": "subject", "BACKGROUND_REFERENCE_PROMPT": "background"},
}
PLACEHOLDERS = ("{edit_prompt}", "{prompt}", "{instruction}")
# The lines that show the form of the answer: a name, a colon, and what may stand there.
_ANSWER_LINE = re.compile(
    r"^[ \t*]*([A-Z][^:\n*]{2,60}?)[ \t*]*:[ \t*]*(?:A number from )?1(?: to |-)5\b.*$", re.MULTILINE
)


@dataclass(frozen=True)
class Rubric:
    """Text for a judge.

    Attributes:
        version: stands for the exact words; stored with every score.
        text: (category, instruction) -> the words.
        names: category -> names of the expected scores, in order.
    """

    version: str
    text: Callable[[str, str], str]
    names: Callable[[str], tuple[str, ...]]


def house_rubric(kind: str) -> Rubric:
    """Ours. Args: kind: 'video', 'reference' or 'image'."""
    return Rubric(house.VERSION, lambda category, words: house.rubric(category, words, kind), house.score_names)


def authors_rubric(benchmark: str, path: Path | None = None) -> Rubric:
    """The authors', from a file or from the published one.

    Raises:
        UsageError: the file is missing or holds no rubrics.
        KiwiError: it cannot be fetched, or is not the published one.
    """
    if path is not None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read the rubrics '{path}': {error.strerror}", "pass a file with --rubrics"
            ) from None
    elif benchmark in PUBLISHED:
        data = fetch(benchmark)
    else:
        raise UsageError(f"there are no published rubrics for {benchmark}", "pass a file with --rubrics, or use house")
    if len(data) > MOST_BYTES:
        raise UsageError(f"too large for a file of rubrics: '{path}'", "pass the authors' evaluation script")
    sha256 = hashlib.sha256(data).hexdigest()
    version = f"file-{sha256[:12]}"
    if benchmark in PUBLISHED and sha256 == PUBLISHED[benchmark][1]:
        version = f"Kiwi-Edit-{COMMIT[:7]}"
    texts = parse(data, benchmark, str(path or PUBLISHED[benchmark][0]))
    names = {category: answer_names(text) for category, text in texts.items()}
    for category, found in names.items():
        if not found:
            raise UsageError(f"the rubric for '{category}' does not say which scores it expects", "check the file")

    def words(category: str, instruction: str) -> str:
        text = _of(texts, category)
        for placeholder in PLACEHOLDERS:
            # Not str.format: the text is data, and braces in it mean nothing else.
            text = text.replace(placeholder, instruction)
        return text

    return Rubric(version, words, lambda category: _of(names, category))


def _of(table: dict[str, Found], category: str) -> Found:
    if category not in table:
        raise UsageError(
            f"the rubrics have none for '{category}'", f"leave it out: --category {' --category '.join(sorted(table))}"
        )
    return table[category]


def parse(data: bytes, benchmark: str, name: str) -> dict[str, str]:
    """Category -> text, from the string constants of a Python file and its mapping of categories to them.

    Raises:
        UsageError: it does not parse, or holds none.
    """
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"not a Python file: '{name}': {error}", "pass the authors' evaluation script") from None
    constants: dict[str, str] = {}
    mapped: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            constants[node.targets[0].id] = value.value
        elif isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                    continue
                if isinstance(entry, ast.Name) and entry.id in constants:
                    mapped[key.value] = constants[entry.id]
                elif isinstance(entry, ast.Constant) and isinstance(entry.value, str) and len(entry.value) > 200:
                    mapped[key.value] = entry.value
    known = CONSTANTS.get(benchmark, {})
    texts = {known[key]: text for key, text in constants.items() if key in known} | mapped
    if not texts:
        raise UsageError(f"no rubrics in '{name}'", f"it has none of {', '.join(known) or 'the known names'}")
    return texts


def answer_names(text: str) -> tuple[str, ...]:
    """Names of the scores that a rubric asks for, from the lines that show the form of the answer."""
    return tuple(dict.fromkeys(match.strip() for match in _ANSWER_LINE.findall(text)))


def fetch(benchmark: str) -> bytes:
    """The published file: from kiwi's cache, or downloaded. Its hash is checked either way.

    Raises:
        KiwiError: it cannot be fetched, or is another file.
    """
    name, sha256 = PUBLISHED[benchmark]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = home / "kiwi" / "rubrics" / COMMIT / name
    if cached.is_file():
        data = cached.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    url = f"{os.environ.get('KIWI_RUBRICS_URL', RAW)}/{COMMIT}/{name}"
    by_hand = f"download {url} and pass it with --rubrics"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = answer.read(MOST_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise KiwiError(f"cannot fetch the authors' rubrics: {reason}", by_hand) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise KiwiError(f"what is at '{url}' is not the published file: its sha256 is {found}", by_hand)
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = cached.with_name(f".{name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(cached)
    return data
