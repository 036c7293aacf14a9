"""The stages of a benchmark in order: data -> edit -> judge -> report. Each can run alone; each resumes.

Nothing heavy is imported before a stage needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.bench import cost, runs
from kiwi_cli.bench.items import BENCHMARKS, Benchmark, Item, choose, parse_shard
from kiwi_cli.bench.judging import JudgeSummary, Terms, judge_items
from kiwi_cli.bench.protocols import Protocol, find_protocol, rubric_for
from kiwi_cli.bench.rubrics import Rubric
from kiwi_cli.console import Console, format_seconds
from kiwi_cli.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.data import Dataset
    from kiwi_cli.bench.edit import EditSummary
    from kiwi_cli.bench.judges.base import Judge
    from kiwi_cli.pipeline import KiwiPipeline

STAGES = ("data", "edit", "judge", "report", "all")
JUDGES = ("gemini", "openai", "local")
LOCAL_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


@dataclass(frozen=True)
class BenchRequest:
    """What the person asked for; `check` looks at it before anything is loaded or fetched.

    Attributes:
        profile: overrides of the published settings, by `Profile`'s names.
        worker_arguments: the command line that a process for one GPU is started with.
    """

    benchmark: str
    stage: str = "all"
    data: Path | None = None
    out: Path | None = None
    model: str | None = None
    limit: int | None = None
    categories: tuple[str, ...] = ()
    shard: str | None = None
    gpus: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    profile: dict[str, Any] = field(default_factory=dict)
    protocol: str = "house"
    rubrics: Path | None = None
    judge: str = "gemini"
    judge_model: str | None = None
    judge_url: str | None = None
    judge_media: str = "frames"
    judge_timeout: float = 300.0
    terms: Terms = field(default_factory=Terms)
    price: str | None = None
    retry_failed: bool = False
    dry_run: bool = False
    worker_arguments: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.out is not None:
            return self.out
        model = runs.safe_name(self.model_name.rsplit("/", 1)[-1])
        return Path(f"bench-{self.benchmark}-{model}")

    @property
    def model_name(self) -> str:
        return self.model or BENCHMARKS[self.benchmark].model

    def does(self, stage: str) -> bool:
        return self.stage in (stage, "all")


def check(request: BenchRequest) -> None:
    """What can be said without reading anything.

    Raises:
        UsageError.
    """
    for name, value, known in (
        ("--stage", request.stage, STAGES),
        ("--judge", request.judge, JUDGES),
        ("--judge-media", request.judge_media, ("frames", "video")),
    ):
        if value not in known:
            raise UsageError(f"unknown {name}: '{value}'", f"use one of {', '.join(known)}")
    for name, number, least in (
        ("--limit", request.limit, 1),
        ("--concurrency", request.terms.concurrency, 1),
        ("--retries", request.terms.retries, 0),
    ):
        if number is not None and number < least:
            raise UsageError(f"{name} must be at least {least}, not {number}")
    for name, real in (("--rate", request.terms.per_minute), ("--judge-timeout", request.judge_timeout)):
        if real is not None and not real > 0:
            raise UsageError(f"{name} must be more than 0, not {real:g}")
    if request.gpus is not None and request.shard is not None:
        raise UsageError("--gpus and --shard exclude each other", "--gpus makes the shards itself")
    if request.shard is not None:
        parse_shard(request.shard)
    find_protocol(request.protocol, request.benchmark)
    if request.price is not None:
        cost.parse_price(request.price)


@dataclass
class Outcome:
    """What the stages did; None for those that did not run."""

    run: runs.Run | None = None
    dataset: Dataset | None = None
    edits: EditSummary | None = None
    judged: JudgeSummary | None = None


def perform(request: BenchRequest, console: Console) -> Outcome:
    """Carry out the stages asked for, but for the report.

    Raises:
        KiwiError: the first thing that cannot be. Items that fail are in the outcome.
    """
    check(request)
    benchmark = BENCHMARKS[request.benchmark]
    protocol = find_protocol(request.protocol, benchmark.name)
    rubric = judge = None
    if request.does("judge"):  # a key that is missing is better found before hours of editing
        rubric = rubric_for(protocol, benchmark, request.rubrics)
        judge = None if request.dry_run else make_judge(request, protocol)
    outcome = Outcome()
    if request.does("data") or request.does("edit"):
        outcome.run, outcome.dataset = _begin(request, benchmark, console)
    else:
        from kiwi_cli.bench.data import find_table

        root = find_table(benchmark, request.data).parent if request.data is not None else None
        outcome.run = runs.open_run(request.folder, root)
        if outcome.run.benchmark.name != benchmark.name:
            raise UsageError(
                f"'{request.folder}' holds a run of {outcome.run.benchmark.name}",
                f"use kiwi bench {outcome.run.benchmark.name}",
            )
    run = outcome.run
    if run is None:
        return outcome
    shard = parse_shard(request.shard) if request.shard else None
    items = choose(run.items, request.categories, request.limit, shard)
    if not request.categories and benchmark.headline and request.does("judge") and protocol.name == "kiwi":
        items = [item for item in items if item.category in benchmark.headline]
    if request.does("edit"):
        outcome.edits = _edit(request, run, items, shard, console)
    if request.does("judge") and rubric is not None:
        _announce_cost(request, run, items, protocol, judge, console)
        if judge is not None:
            outcome.judged = _judge(request, run, items, protocol, rubric, judge, shard, console)
    return outcome


def _begin(request: BenchRequest, benchmark: Benchmark, console: Console) -> tuple[runs.Run | None, Dataset]:
    from kiwi_cli.bench import data

    dataset = data.load(benchmark, request.data, console, request.folder / "data")
    if not request.does("edit"):
        return None, dataset
    from kiwi_cli.bench.edit import Profile, fingerprint

    profile = Profile().changed(**request.profile)
    model = {"name": request.model_name, "fingerprint": ""}
    if request.dry_run:  # nothing is written, and no model is needed
        identity = runs.describe(benchmark.name, dataset.describe(), model, profile.describe())
        return runs.Run(request.folder, identity, dataset.items, dataset.root), dataset
    from kiwi_cli.weights import hub

    model["fingerprint"] = fingerprint(hub.ensure(request.model_name, console=console))
    identity = runs.describe(benchmark.name, dataset.describe(), model, profile.describe())
    return runs.start(request.folder, identity, dataset.items, dataset.root), dataset


def _edit(
    request: BenchRequest, run: runs.Run, items: Sequence[Item], shard: tuple[int, int] | None, console: Console
) -> EditSummary | None:
    from kiwi_cli.bench.edit import EditSummary, Profile, edit_items, last_failures

    profile = Profile(**run.identity["settings"])
    console.note(f"settings {profile}")
    done = len(run.complete(items))
    console.note(f"{len(items)} items to edit, {done} of them done already, in '{run.folder}'")
    if request.dry_run:
        return None
    labels = {"items": "edit"}
    if request.gpus is not None and done < len(items):
        from kiwi_cli.bench.workers import parse_gpus, run_shards

        devices = parse_gpus(request.gpus)
        console.note(f"one process on each of {', '.join(devices)}")
        with console.stages(labels) as stages:
            bad = run_shards(request.worker_arguments, devices, lambda: len(run.complete(items)), len(items), stages)
        failures = {key: why for key, why in last_failures(run).items() if key in {item.id for item in items}}
        for device, code, words in bad:
            if not failures or code != 1:
                console.warn(f"the process on {device} ended with {code}: {words}")
        for key, reason in failures.items():
            console.warn(f"'{key}': {reason}")
        complete = len(run.complete(items))
        for item in items:
            if not run.edited(item).is_file():
                failures.setdefault(item.id, "its process ended early")
        return EditSummary(complete, complete - done, failures, sum(stages.seconds.values()))
    with console.stages(labels) as stages:
        summary = edit_items(
            run,
            items,
            profile,
            lambda: _load(request, console),
            shard,
            stages,
            lambda item, reason: console.warn(f"'{item.id}': {reason}"),
        )
    if summary.made:
        each = format_seconds(summary.seconds / summary.made)
        console.note(f"{summary.made} items edited, {each} each")
    return summary


def _load(request: BenchRequest, console: Console) -> KiwiPipeline:
    from kiwi_cli import weights
    from kiwi_cli.devices import refuse_large_on_cpu
    from kiwi_cli.pipeline import KiwiPipeline
    from kiwi_cli.weights import hub

    folder = hub.ensure(request.model_name, console=console)
    refuse_large_on_cpu(weights.parameter_count(folder), request.device)
    return KiwiPipeline.from_pretrained(str(folder), device=request.device, dtype=request.dtype)


def make_judge(request: BenchRequest, protocol: Protocol) -> Judge:
    """The judge asked for.

    Raises:
        UsageError: its client is not installed, its key not set, or no model named.
    """
    if request.judge == "gemini":
        from kiwi_cli.bench.judges.gemini import GeminiJudge

        return GeminiJudge(request.judge_model or protocol.model, request.judge_url, request.judge_timeout)
    if request.judge == "openai":
        from kiwi_cli.bench.judges.openai import OpenAIJudge

        if request.judge_model is None:
            raise UsageError("no judge named", "name the endpoint's model with --judge-model")
        media: Any = request.judge_media
        return OpenAIJudge(request.judge_model, request.judge_url, request.judge_timeout, media)
    from kiwi_cli.bench.judges.local import LocalJudge

    return LocalJudge(request.judge_model or LOCAL_MODEL, request.device, request.dtype)


def _announce_cost(
    request: BenchRequest,
    run: runs.Run,
    items: Sequence[Item],
    protocol: Protocol,
    judge: Judge | None,
    console: Console,
) -> None:
    if request.judge == "local":
        return
    model = judge.model if judge is not None else request.judge_model or protocol.model
    tokens = cost.estimate_tokens(run, items)
    price = cost.parse_price(request.price) if request.price else None
    amount = cost.dollars(model, tokens, price)
    words = (
        f"about {amount:.2f} dollars at list price" if amount is not None else "price not known; --price IN/OUT says it"
    )
    console.note(
        f"judging {len(items)} items by '{model}': about {tokens[0] / 1e6:.2f} million tokens in, "
        f"{tokens[1] / 1e6:.2f} million out; {words}; what is in the ledger already is free"
    )


def _judge(
    request: BenchRequest,
    run: runs.Run,
    items: Sequence[Item],
    protocol: Protocol,
    rubric: Rubric,
    judge: Judge,
    shard: tuple[int, int] | None,
    console: Console,
) -> JudgeSummary:
    from dataclasses import replace

    from kiwi_cli.bench.ledger import Ledger
    from kiwi_cli.bench.scores import same_model

    terms = replace(request.terms, concurrency=1) if request.judge == "local" else request.terms
    console.note(f"protocol '{protocol.name}', rubric '{rubric.version}', {terms.concurrency} questions at once")
    with Ledger(run.folder, shard) as ledger:
        if ledger.in_doubt:
            console.warn(
                f"{ledger.in_doubt} questions were on their way when an earlier run ended; their answers are lost, "
                "and asking again may charge them twice"
            )
        with console.stages({"items": "judge"}) as stages:
            summary = judge_items(
                run,
                items,
                protocol,
                rubric,
                judge,
                ledger,
                terms,
                request.retry_failed,
                stages,
                lambda item, reason: console.warn(f"'{item.id}': {reason}"),
            )
    price = cost.parse_price(request.price) if request.price else None
    amount = cost.dollars(judge.model, (summary.input_tokens, summary.output_tokens), price)
    console.note(
        f"{summary.scored} of {len(items)} items scored; {summary.answers} answers now, "
        f"{summary.input_tokens} tokens in, {summary.output_tokens} out"
        + (f", {amount:.2f} dollars at list price" if amount is not None else "")
    )
    if summary.unedited:
        console.warn(f"{len(summary.unedited)} items have no result yet and were not judged")
    for version in sorted(summary.answered_by):
        if version and not same_model(judge.model, version):
            count = summary.answered_by[version]
            console.warn(
                f"'{version}' answered {count} questions put to '{judge.model}'; its scores carry its own name"
            )
    return summary


def raise_failures(outcome: Outcome) -> None:
    """End with exit code 1 when items failed.

    Raises:
        KiwiError: says how many of how many.
    """
    failures: dict[str, str] = {}
    for summary in (outcome.edits, outcome.judged):
        if summary is not None:
            failures |= summary.failures
    if failures:
        name = next(iter(failures))
        raise KiwiError(
            f"{len(failures)} items failed, the first, '{name}': {failures[name]}",
            "run the same command again; what is done is kept (unreadable answers: --retry-failed)",
        )


__all__ = ["BenchRequest", "Outcome", "check", "make_judge", "perform", "raise_failures"]
