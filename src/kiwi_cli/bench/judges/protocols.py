"""How a judge is asked, and what the published overall is the mean of: one frozen row for each protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi_cli.bench.judges import vefx
from kiwi_cli.bench.judges.parse import HIGHEST, LOWEST
from kiwi_cli.bench.judges.rubrics import Rubric, authors_rubric, house_rubric
from kiwi_cli.bench.suites.items import Benchmark
from kiwi_cli.errors import UsageError

Headline = Literal["categories", "items", "columns"]


@dataclass(frozen=True)
class Protocol:
    """One way of judging.

    Attributes:
        name, benchmark: what it is for.
        model: the judge that published results name; the default.
        temperature: None leaves it to the service.
        place: the rubric is the system instruction, or the first of the contents.
        tries: answers asked for until one can be read.
        headline: the overall is the mean over categories, over items, or over the columns of all categories.
        all_categories: the overall counts every category, not only those of the benchmark's headline.
        scale: lowest and highest score. whole: scores are whole numbers.
    """

    name: str
    benchmark: str
    model: str
    temperature: float | None
    place: Literal["system", "first"]
    tries: int
    headline: Headline
    all_categories: bool = False
    scale: tuple[int, int] = (LOWEST, HIGHEST)
    whole: bool = True


HOUSE_MODEL = "gemini-3-flash-preview"
PROTOCOLS = (
    # showlab/Kiwi-Edit at 223572d: eval_openve_gemini.py and eval_refvie_gemini.py
    Protocol("kiwi", "openve", "gemini-2.5-pro", None, "system", 3, "categories"),
    Protocol("kiwi", "refvie", "gemini-3-flash-preview", None, "system", 3, "columns"),
    # The authors of OpenVE-Bench
    Protocol("openve", "openve", "gemini-2.5-pro-preview-05-06", 0.7, "first", 5, "items", all_categories=True),
    # VEFX-Reward, arXiv 2604.16272: a model that scores by itself, on a scale of its own
    Protocol("vefx", "openve", vefx.MODEL, None, "first", 1, "items", all_categories=True, scale=(1, 4), whole=False),
    Protocol("house", "openve", HOUSE_MODEL, None, "system", 3, "categories"),
)


def _house(benchmark: str) -> Protocol:
    """Our own questions, which any benchmark can be judged by."""
    return Protocol("house", benchmark, HOUSE_MODEL, None, "system", 3, "items")


def find_protocol(name: str, benchmark: str) -> Protocol:
    """The protocol of that name for a benchmark.

    Raises:
        UsageError: there is none.
    """
    for protocol in PROTOCOLS:
        if (protocol.name, protocol.benchmark) == (name, benchmark):
            return protocol
    if name == "house":
        return _house(benchmark)
    names = ", ".join(dict.fromkeys([*(p.name for p in PROTOCOLS if p.benchmark == benchmark), "house"]))
    raise UsageError(f"{benchmark} has no protocol '{name}'", f"use one of {names}")


def rubric_for(protocol: Protocol, benchmark: Benchmark, path: Path | None) -> Rubric:
    """The words that go with a protocol.

    Raises:
        UsageError, KiwiError: as `authors_rubric`; or a file is given that the protocol has no use for.
    """
    if protocol.name == "vefx":
        return vefx.authors_text(path)
    if protocol.name == "house":
        if path is not None:
            raise UsageError("--rubrics does not go with --protocol house", "pass --protocol kiwi")
        kind = "reference" if "reference" in benchmark.columns else benchmark.kind
        return house_rubric(kind)
    if protocol.name == "openve" and path is None:
        raise UsageError("the rubrics of protocol 'openve' have no fixed place", "pass their file with --rubrics")
    return authors_rubric(benchmark.name, path)
