"""How a judge is asked, and what the published overall is the mean of: one frozen row for each protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi_cli.bench.items import Benchmark
from kiwi_cli.bench.rubrics import Rubric, authors_rubric, house_rubric
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
    """

    name: str
    benchmark: str
    model: str
    temperature: float | None
    place: Literal["system", "first"]
    tries: int
    headline: Headline
    all_categories: bool = False


PROTOCOLS = (
    # showlab/Kiwi-Edit at 223572d: eval_openve_gemini.py and eval_refvie_gemini.py
    Protocol("kiwi", "openve", "gemini-2.5-pro", None, "system", 3, "categories"),
    Protocol("kiwi", "refvie", "gemini-3-flash-preview", None, "system", 3, "columns"),
    # The authors of OpenVE-Bench
    Protocol("openve", "openve", "gemini-2.5-pro-preview-05-06", 0.7, "first", 5, "items", all_categories=True),
    Protocol("house", "openve", "gemini-3-flash-preview", None, "system", 3, "categories"),
    Protocol("house", "refvie", "gemini-3-flash-preview", None, "system", 3, "items"),
    Protocol("house", "imgedit", "gemini-3-flash-preview", None, "system", 3, "items"),
)


def find_protocol(name: str, benchmark: str) -> Protocol:
    """The protocol of that name for a benchmark.

    Raises:
        UsageError: there is none.
    """
    for protocol in PROTOCOLS:
        if (protocol.name, protocol.benchmark) == (name, benchmark):
            return protocol
    names = ", ".join(p.name for p in PROTOCOLS if p.benchmark == benchmark)
    raise UsageError(f"{benchmark} has no protocol '{name}'", f"use one of {names}")


def rubric_for(protocol: Protocol, benchmark: Benchmark, path: Path | None) -> Rubric:
    """The words that go with a protocol.

    Raises:
        UsageError, KiwiError: as `authors_rubric`; or a file is given that the protocol has no use for.
    """
    if protocol.name == "house":
        if path is not None:
            raise UsageError("--rubrics does not go with --protocol house", "pass --protocol kiwi")
        kind = "reference" if benchmark.name == "refvie" else benchmark.kind
        return house_rubric(kind)
    if protocol.name == "openve" and path is None:
        raise UsageError("the rubrics of protocol 'openve' have no fixed place", "pass their file with --rubrics")
    return authors_rubric(benchmark.name, path)
