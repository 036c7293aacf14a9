"""The stages of a benchmark in order: data -> edit -> judge -> report. Each can run alone; each resumes.

Nothing heavy is imported before a stage needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.events import Events, Stages
from kiwi_cli.base.text import count as counted
from kiwi_cli.base.text import format_seconds
from kiwi_cli.batch.crew import Crew
from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.shard import parse_shard
from kiwi_cli.batch.worker import Told
from kiwi_cli.bench import editors
from kiwi_cli.bench import run as runs
from kiwi_cli.bench.judges import cost
from kiwi_cli.bench.judges.judging import JudgeSummary, Terms, judge_items
from kiwi_cli.bench.judges.protocols import Protocol, find_protocol, rubric_for
from kiwi_cli.bench.judges.rubrics import Rubric
from kiwi_cli.bench.suites.items import BENCHMARKS, Benchmark, Item, choose
from kiwi_cli.editors.registry import check_used
from kiwi_cli.engine.choice import ModelChoice, Sampling, check_together
from kiwi_cli.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.edit import EditSummary
    from kiwi_cli.bench.judges.base import Judge
    from kiwi_cli.bench.suites.data import Dataset

STAGES = ("data", "edit", "judge", "report", "all")
JUDGES = ("gemini", "openai", "local", "vefx")
HERE = ("local", "vefx")  # judges on this machine: nothing is paid, and one question is asked at a time
LOCAL_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


@dataclass(frozen=True)
class BenchRequest:
    """What the person asked for; `check` looks at it before anything is loaded or fetched.

    Attributes:
        choice: the model; without a name, the best published for the task.
        sampling: its steps, seed and shortcuts.
        profile: other overrides of the published settings, by `Profile`'s names.
    """

    benchmark: str
    stage: str = "all"
    data: Path | None = None
    out: Path | None = None
    choice: ModelChoice = field(default_factory=ModelChoice)
    sampling: Sampling = field(default_factory=Sampling)
    limit: int | None = None
    categories: tuple[str, ...] = ()
    shard: str | None = None
    gpus: str | None = None
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

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.out is not None:
            return self.out
        return Path(f"bench-{self.benchmark}-{editors.short_name(self.editor)}")

    @property
    def editor(self) -> ModelChoice:
        """The choice with its model named."""
        return editors.chosen(self.choice, BENCHMARKS[self.benchmark])

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
    check_together(request.choice, request.sampling)
    if request.does("edit"):
        check_used(request.choice, request.sampling, frozenset({"device", "dtype"}))  # the judge has a use for these
    if request.sampling.calibrate_cache is not None:
        raise UsageError(
            "a benchmark measures no cache ratios", "measure them in one edit: kiwi edit --calibrate-cache"
        )
    find_protocol(request.protocol, request.benchmark)
    if (request.judge == "vefx") != (request.protocol == "vefx"):  # its scale and its questions are nobody else's
        raise UsageError("--judge vefx and --protocol vefx go together", "pass both, or neither")
    if request.price is not None:
        cost.parse_price(request.price)


@dataclass
class Outcome:
    """What the stages did; None for those that did not run."""

    run: runs.Run | None = None
    dataset: Dataset | None = None
    edits: EditSummary | None = None
    judged: JudgeSummary | None = None


def perform(request: BenchRequest, events: Events) -> Outcome:
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
        outcome.run, outcome.dataset = _begin(request, benchmark, events)
    else:
        from kiwi_cli.bench.suites.data import find_table

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
        outcome.edits = _edit(request, run, items, events)
    if request.does("judge") and rubric is not None:
        _announce_cost(request, run, items, protocol, judge, events)
        if judge is not None:
            outcome.judged = _judge(request, run, items, protocol, rubric, judge, shard, events)
    return outcome


def _begin(request: BenchRequest, benchmark: Benchmark, events: Events) -> tuple[runs.Run | None, Dataset]:
    from kiwi_cli.bench.suites import data

    dataset = data.load(benchmark, request.data, events, request.folder / "data")
    if not request.does("edit"):
        return None, dataset
    from kiwi_cli.bench.edit import Profile

    profile = Profile.of(request.choice, request.sampling, **request.profile)
    model = editors.describe(request.editor, None if request.dry_run else events)
    identity = runs.describe(benchmark.name, dataset.describe(), model, profile.describe())
    if request.dry_run:  # nothing is written, and no model is needed
        return runs.Run(request.folder, identity, dataset.items, dataset.root), dataset
    return runs.start(request.folder, identity, dataset.items, dataset.root), dataset


def _edit(request: BenchRequest, run: runs.Run, items: Sequence[Item], events: Events) -> EditSummary | None:
    from kiwi_cli.bench.edit import Profile, edit_items

    profile = Profile(**run.identity["settings"])
    events.note(f"settings {profile}")
    done = len(run.complete(items))
    events.note(f"{counted(len(items), 'item')} to edit, {done} of them done already, in '{run.folder}'")
    undone = [item for item in items if not run.edited(item).is_file()]
    if price := editors.price_of(request.editor, run, undone, profile.frames):
        events.note(f"editing by '{request.editor.name}': {price}")
    if request.dry_run:
        return None
    crew = Crew(gpus=request.gpus)
    if done < len(items) and (devices := crew.devices()):
        events.note(f"one process on each of {', '.join(map(str, devices))}")
    choice = editors.by_folder(request.editor, events)
    with events.stages({"items": "edit"}) as stages:
        told = _Shown(stages, done, events)
        summary, troubles = edit_items(run, items, choice, request.sampling, crew, told, events)
    for trouble in troubles:
        events.warn(trouble)
    if summary.made:
        each = format_seconds(summary.seconds / summary.made)
        cost = f", {summary.dollars:.2f} dollars" if summary.dollars is not None else ""
        events.note(f"{summary.made} items edited, {each} each{cost}")
    return summary


class _Shown(Told):
    """What a person sees of items as they are edited: one bar, and each failure."""

    def __init__(self, stages: Stages, before: int, events: Events) -> None:
        self.stages, self.before, self.events = stages, before, events
        self._shown = 0

    def ended(self, job: Job, record: dict[str, Any]) -> None:
        if record["state"] == "failed":
            self.events.warn(f"'{job.label}': {record['reason']}")

    def settled(self, done: int, failed: int, total: int) -> None:
        if done + failed > self._shown:
            self._shown = done + failed
            self.stages("items", self.before + done + failed, self.before + total)


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
    if request.judge == "vefx":
        from kiwi_cli.bench.judges.vefx import VefxJudge

        return VefxJudge(request.judge_model or protocol.model, request.choice.device, request.choice.dtype)
    from kiwi_cli.bench.judges.local import LocalJudge

    return LocalJudge(request.judge_model or LOCAL_MODEL, request.choice.device, request.choice.dtype)


def _announce_cost(
    request: BenchRequest,
    run: runs.Run,
    items: Sequence[Item],
    protocol: Protocol,
    judge: Judge | None,
    events: Events,
) -> None:
    if request.judge in HERE:
        return
    model = judge.model if judge is not None else request.judge_model or protocol.model
    tokens = cost.estimate_tokens(run, items)
    price = cost.parse_price(request.price) if request.price else None
    amount = cost.dollars(model, tokens, price)
    words = (
        f"about {amount:.2f} dollars at list price" if amount is not None else "price not known; --price IN/OUT says it"
    )
    events.note(
        f"judging {counted(len(items), 'item')} by '{model}': about {tokens[0] / 1e6:.2f} million tokens in, "
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
    events: Events,
) -> JudgeSummary:
    from kiwi_cli.bench.judges.ledger import Ledger
    from kiwi_cli.bench.report.scores import same_model

    terms = replace(request.terms, concurrency=1) if request.judge in HERE else request.terms
    events.note(f"protocol '{protocol.name}', rubric '{rubric.version}', {terms.concurrency} questions at once")
    with Ledger(run.folder, shard) as ledger:
        if ledger.in_doubt:
            events.warn(
                f"{ledger.in_doubt} questions were on their way when an earlier run ended; their answers are lost, "
                "and asking again may charge them twice"
            )
        with events.stages({"items": "judge"}) as stages:
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
                lambda item, reason: events.warn(f"'{item.id}': {reason}"),
            )
    price = cost.parse_price(request.price) if request.price else None
    amount = cost.dollars(judge.model, (summary.input_tokens, summary.output_tokens), price)
    events.note(
        f"{summary.scored} of {len(items)} items scored; {summary.answers} answers now, "
        f"{summary.input_tokens} tokens in, {summary.output_tokens} out"
        + (f", {amount:.2f} dollars at list price" if amount is not None else "")
    )
    if summary.unedited:
        events.warn(f"without a result yet, and not judged: {counted(len(summary.unedited), 'item')}")
    for version in sorted(summary.answered_by):
        if version and not same_model(judge.model, version):
            count = summary.answered_by[version]
            events.warn(f"'{version}' answered {count} questions put to '{judge.model}'; its scores carry its own name")
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
            f"{counted(len(failures), 'item')} failed, the first, '{name}': {failures[name]}",
            "run the same command again; what is done is kept (unreadable answers: --retry-failed)",
        )


__all__ = ["BenchRequest", "Outcome", "check", "make_judge", "perform", "raise_failures"]
