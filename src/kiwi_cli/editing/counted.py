"""What a plan takes, counted before anything is loaded."""

from __future__ import annotations

from kiwi_cli.base import hardware
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.engine import estimate
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.model import shape as shapes

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes


def shape_of(plan: EditPlan) -> shapes.Shape:
    """The model's shape; that of a released one while it is not here."""
    return shapes.RELEASED_5B if plan.model is None else shapes.read_shape(plan.model)


def item_of(plan: EditPlan) -> int:
    """Bytes of a number of the precision that is worked in."""
    on_cpu = plan.request.choice.device == "cpu" or not hardware.gpus()
    return ITEM.get(plan.request.choice.dtype, 4 if on_cpu else 2)


def counted(plan: EditPlan) -> tuple[estimate.Estimate, bool]:
    """The counts, and whether they are of this checkpoint; one that is not here is taken to be a 5B."""
    request = plan.request
    found = estimate.estimate(
        shape_of(plan),
        plan.size,
        plan.at_once,
        len(request.references),
        plan.steps,
        item_of(plan),
        request.choice.quantize,
        request.choice.compile,
        round_trip=plan.detail == "source",
    )
    if plan.windows is not None:
        layout = plan.windows.layout
        if layout is None:
            found = found.times(plan.windows.count)
        else:
            one, references = found, len(request.references)
            found = one.joined(layout, plan.windows.contexts_read, references)
            found = found if plan.kept is None else found.decoding()
            for part in plan.parts if plan.kept is None else plan.parts[-1:]:
                found = found.plus(one.part(layout, part, contexts_of(plan, part), references))
    return found, plan.model is not None


def contexts_of(plan: EditPlan, part: PartRows) -> int:
    """How often the instruction is read for a part that is made anew."""
    assert plan.windows is not None and plan.windows.layout is not None
    shots = {plan.windows.layout.windows[number].shot for number in part.windows}
    return len(shots) if plan.windows.contexts == "shot" else len(part.windows)
