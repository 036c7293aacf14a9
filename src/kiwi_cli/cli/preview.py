"""`--preview` and `--seeds`: the sheet is made and told of, with the command that comes next."""

from __future__ import annotations

import shlex
from typing import Any

from kiwi_cli.base import processes
from kiwi_cli.base.option import rows
from kiwi_cli.base.text import format_seconds
from kiwi_cli.cli.console import Console
from kiwi_cli.editing.plain import values_of
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.preview import Preview, expected_words, preview
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.weights.catalog import DEFAULT_EDIT, DEFAULT_REF_EDIT

UNSAID = ("input", "instruction", "preview", "seeds", "overwrite")
"""Not in the command that comes next: an old sheet was to be replaced, of an old edit nothing was said."""


def show(plan: EditPlan, console: Console) -> None:
    """Make the sheet that a plan asks for, and say where it is, how long the whole takes and how to have it."""
    typed = command_of(plan.request)
    console.note(f"instruction: {plan.told(plan.request)}")
    made = preview(plan, typed, console)
    if not processes.is_first():
        return
    console.note(f"wrote the sheet in {format_seconds(made.seconds['total'])}; {expected_words(plan, made)}")
    console.note(f"next: {typed}")
    console.result(str(made.path), report(plan, made, typed))


def command_of(request: EditRequest) -> str:
    """The command of the edit that a preview was made of, as a person types it; of several seeds with N for one."""
    name, model = ("ref-edit", DEFAULT_REF_EDIT) if request.references else ("edit", DEFAULT_EDIT)
    given, options = [str(request.input), request.instruction], []
    usual = {"model": model}
    seeds = request.previewing.seeds is not None
    for row in rows(EditRequest).values():
        value, flag = values_of(request)[row.name], row.option.flags[-1]
        if row.name in UNSAID or (row.name == "seed" and seeds):
            continue
        if value == usual.get(row.name, row.default):
            continue
        if row.is_flag:
            on, _, off = flag.strip().partition("/")
            options.append(on if value else off)
        else:
            for each in value if row.many else [value]:
                options += [flag, str(each).removesuffix(".0") if isinstance(each, float) else str(each)]
    options += ["--seed", "N"] if seeds else []
    is_like_an_option = any(word.startswith("-") for word in given)
    return shlex.join(["kiwi", name, *([*options, "--", *given] if is_like_an_option else [*given, *options])])


def report(plan: EditPlan, made: Preview, typed: str) -> dict[str, Any]:
    """The JSON object of a preview; its keys are documented in docs/json.md."""
    return {
        "preview": str(made.path),
        "input": str(plan.request.input),
        "output": str(made.output),
        "moments": [
            {"shot": each.shot + 1, "frame": each.frame, "time": round(float(each.time), 3)} for each in made.moments
        ],
        "seeds": list(made.seeds),
        "working_size": str(made.size),
        "steps": made.steps,
        "device": made.device,
        "dtype": made.dtype,
        "seconds": {name: round(value, 3) for name, value in made.seconds.items()},
        "estimate": {"seconds": round(made.expected, 3), "working_size": str(plan.size), "steps": plan.steps},
        "next": typed,
        "notices": [*plan.warnings, *plan.notices],
        "approximations": list(made.approximations),
    }
