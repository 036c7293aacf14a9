"""`kiwi bench openve`, `refvie` and `imgedit`: one command each, with the same options."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.base.option import MODEL, Row, rows
from kiwi_cli.bench.suites.items import BENCHMARKS
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.endings import keeping
from kiwi_cli.cli.root import bench
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.engine.choice import ModelChoice, Sampling

WORK, JUDGE, OUT, OVERRIDES = "What to do", "The judge", "The report", "Instead of the published settings"

EXAMPLES = """

    Stages: data (fetch and check), edit, judge, report. Each goes on where it stopped.

    Examples:

      kiwi bench {name} --stage data

      kiwi bench {name} --limit 10 --dry-run

      kiwi bench {name} --stage edit --gpus all --out runs/mine

      GEMINI_API_KEY=... kiwi bench {name} --stage judge --out runs/mine
"""


FROM_THE_ENVIRONMENT = ("model", "download", "device", "dtype", "max_memory")
"""The others' variables are meant for edits; a benchmark keeps to the published settings unless it is told."""
PUBLISHED = {
    "model": "the best published for the task",
    "steps": "50",
    "frames": "81",
    "size": "the clip's, up to 1280x720 pixels, floored to 32",
}


def _rows() -> list[Row]:
    """What decides how items are edited: the model, the sampling, and how much of a clip the model is given."""
    nested = (*fields(ModelChoice), *fields(Sampling))
    names = [each.name for each in nested if each.name != "calibrate_cache"] + ["frames", "size"]
    found = []
    for name in names:
        row = rows(EditRequest)[name]
        group = row.option.group if row.option.group == MODEL else OVERRIDES
        env = row.option.env if name in FROM_THE_ENVIRONMENT else None
        row = row.but(group=group, env=env, unset=PUBLISHED.get(name, row.option.unset))
        if name == "model":
            row = row.but(default=None)
        if name == "size":
            row = row.but(help="Size the model works at, and the result has: 720p, 480p, source or WIDTHxHEIGHT.")
        found.append(row)
    return found


ROWS = _rows()


def _command(name: str) -> Any:
    @options.takes(ROWS)
    def command(
        stage: Annotated[
            str, typer.Option(help="data, edit, judge, report or all.", rich_help_panel=WORK, metavar="STAGE")
        ] = "all",
        data: Annotated[
            Path | None,
            typer.Option(help="A local copy of the data set. Default: the Hub's.", rich_help_panel=WORK, metavar="DIR"),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(
                "-o", "--out", help="The run's folder. Default: bench-NAME-MODEL.", rich_help_panel=WORK, metavar="DIR"
            ),
        ] = None,
        limit: Annotated[
            int | None, typer.Option(help="At most this many items, of all types in turn.", rich_help_panel=WORK)
        ] = None,
        category: Annotated[
            list[str], typer.Option(help="Only this type; repeat for several.", rich_help_panel=WORK, metavar="TYPE")
        ] = [],  # noqa: B006 (Typer copies it)
        shard: Annotated[
            str | None, typer.Option(help="Only the i-th of n parts.", rich_help_panel=WORK, metavar="I/N")
        ] = None,
        gpus: Annotated[
            str | None,
            typer.Option(help="One process on each: all, or 0,1,...", rich_help_panel=WORK, metavar="LIST"),
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be done and what it costs.", rich_help_panel=WORK)
        ] = False,
        *,
        protocol: Annotated[
            str, typer.Option(help="house, kiwi (as Kiwi-Edit's page), openve or vefx.", rich_help_panel=JUDGE)
        ] = "house",
        rubrics: Annotated[
            Path | None,
            typer.Option(help="The authors' script, for kiwi, openve and vefx.", rich_help_panel=JUDGE, metavar="FILE"),
        ] = None,
        judge: Annotated[str, typer.Option(help="gemini, openai, local or vefx.", rich_help_panel=JUDGE)] = "gemini",
        judge_model: Annotated[
            str | None, typer.Option(help="Default: the protocol's.", rich_help_panel=JUDGE, metavar="NAME")
        ] = None,
        judge_url: Annotated[
            str | None, typer.Option(help="Another endpoint.", rich_help_panel=JUDGE, metavar="URL")
        ] = None,
        judge_media: Annotated[
            str, typer.Option(help="openai: frames (sampled here) or video.", rich_help_panel=JUDGE)
        ] = "frames",
        judge_timeout: Annotated[float, typer.Option(help="Seconds for an answer.", rich_help_panel=JUDGE)] = 300.0,
        concurrency: Annotated[int, typer.Option(help="Questions at once.", rich_help_panel=JUDGE)] = 4,
        rate: Annotated[
            float | None, typer.Option(help="At most so many questions a minute.", rich_help_panel=JUDGE)
        ] = None,
        retries: Annotated[int, typer.Option(help="After 408, 429, 5xx and time-outs.", rich_help_panel=JUDGE)] = 6,
        retry_wait: Annotated[
            float, typer.Option(help="Seconds before the first; doubles.", rich_help_panel=JUDGE)
        ] = 2.0,
        retry_failed: Annotated[
            bool, typer.Option("--retry-failed", help="Ask again where answers were unreadable.", rich_help_panel=JUDGE)
        ] = False,
        price: Annotated[
            str | None,
            typer.Option(help="Dollars a million tokens.", rich_help_panel=JUDGE, metavar="IN/OUT"),
        ] = None,
        metrics: Annotated[
            bool, typer.Option("--metrics", help="Also figures without a judge.", rich_help_panel=OUT)
        ] = False,
        cap: Annotated[
            bool, typer.Option("--cap", help="Hold the later scores down to the first.", rich_help_panel=OUT)
        ] = False,
        as_json: options.AsJson = False,
        quiet: options.Quiet = False,
        **values: Any,
    ) -> None:
        arguments = dict(locals())
        perform(name, {**arguments, **options.gathered(arguments.pop("values"))})

    benchmark = BENCHMARKS[name]
    command.__doc__ = f"{benchmark.title}: {benchmark.about}.{EXAMPLES.format(name=name)}"
    return command


def perform(name: str, arguments: dict[str, Any]) -> None:
    """Carry out a command's stages and print its report."""
    console = Console(quiet=arguments["quiet"], as_json=arguments["as_json"])

    from kiwi_cli.bench import stages
    from kiwi_cli.bench.judges.judging import Terms

    request = stages.BenchRequest(
        benchmark=name,
        stage=arguments["stage"],
        data=arguments["data"],
        out=arguments["out"],
        limit=arguments["limit"],
        categories=tuple(arguments["category"]),
        shard=arguments["shard"],
        gpus=arguments["gpus"],
        choice=ModelChoice(**{**_part(ModelChoice, arguments), "model": arguments["model"] or ""}),
        sampling=Sampling(**_part(Sampling, arguments)),
        profile={key: arguments[key] for key in ("frames", "size")},
        protocol=arguments["protocol"],
        rubrics=arguments["rubrics"],
        judge=arguments["judge"],
        judge_model=arguments["judge_model"],
        judge_url=arguments["judge_url"],
        judge_media=arguments["judge_media"],
        judge_timeout=arguments["judge_timeout"],
        terms=Terms(arguments["concurrency"], arguments["rate"], arguments["retries"], arguments["retry_wait"]),
        price=arguments["price"],
        retry_failed=arguments["retry_failed"],
        dry_run=arguments["dry_run"],
    )
    with keeping(f"items that are done are kept in '{request.folder}'"):
        outcome = stages.perform(request, console)
    if arguments["metrics"] and outcome.run is not None and not request.dry_run:
        measure(request, outcome, arguments, console)
    if outcome.run is None:
        assert outcome.dataset is not None
        data = {"folder": str(outcome.dataset.root), **outcome.dataset.describe()}
        console.result(str(outcome.dataset.root), data)
    elif request.does("report") and not request.dry_run:
        from kiwi_cli.cli.bench_report import write_and_show

        write_and_show([outcome.run], outcome.run.folder / "report", console, capped=arguments["cap"])
    else:
        console.result(str(outcome.run.folder), summary(outcome))
    stages.raise_failures(outcome)


def _part(kind: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are fields of a choice."""
    return {each.name: arguments[each.name] for each in fields(kind) if each.name in arguments}


def summary(outcome: Any) -> dict[str, Any]:
    """The JSON object of a run without a report."""
    data: dict[str, Any] = {"folder": str(outcome.run.folder), "benchmark": outcome.run.benchmark.name}
    if outcome.edits is not None:
        data["edited"] = {"done": outcome.edits.done, "made": outcome.edits.made, "failures": outcome.edits.failures}
        if outcome.edits.dollars is not None:
            data["edited"]["dollars"] = round(outcome.edits.dollars, 4)
    if outcome.judged is not None:
        judged = outcome.judged
        data["judged"] = {
            "scored": judged.scored,
            "answers": judged.answers,
            "failures": judged.failures,
            "unedited": judged.unedited,
            "repeated": judged.repeated,
            "input_tokens": judged.input_tokens,
            "output_tokens": judged.output_tokens,
            "answered_by": dict(sorted(judged.answered_by.items())),
        }
    return data


def measure(request: Any, outcome: Any, arguments: dict[str, Any], console: Console) -> None:
    """`--metrics`: the figures that need no judge."""
    from kiwi_cli.batch.shard import parse_shard
    from kiwi_cli.bench.metrics.measure import measure_run
    from kiwi_cli.bench.suites.items import choose

    shard = parse_shard(request.shard) if request.shard else None
    items = choose(outcome.run.items, request.categories, request.limit, shard)
    with console.stages({"items": "measure"}) as progress:
        failures = measure_run(outcome.run, items, arguments["device"], shard, progress)
    for name, reason in failures.items():
        console.warn(f"'{name}': {reason}")


for _name in BENCHMARKS:
    bench.command(_name)(_command(_name))
