"""What `jvidprune plan --compile` shows: programs compiled for a slice of TPUs beside the plan on paper."""

import dataclasses
from typing import TYPE_CHECKING, Any

from jvidprune.cli.plan_rows import PlanChoice, PlanRow, mesh_text, planned

if TYPE_CHECKING:
    from rich.table import Table

    from jvidprune.costs.compiled import CompiledPlan, Slice
    from jvidprune.costs.footprint import Sizes

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class CompiledRow:
    """A plan on paper, and what XLA made of it."""

    paper: PlanRow
    compiled: "CompiledPlan"

    @property
    def trains(self) -> bool:
        """Whether it is a training step, which no plan on paper knows."""
        return self.compiled.stages[0].name == "step"

    @property
    def off(self) -> float | None:
        """Peak of one chip by the compiler over that on paper; None of a training step."""
        return None if self.trains else self.compiled.peak / self.paper.memory.peak

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plan = self.compiled
        stages = [
            dataclasses.asdict(stage)
            | {
                "working": stage.working,
                "collectives": stage.collectives,
                "messages": [message._asdict() for message in stage.messages],
            }
            for stage in plan.stages
        ]
        found = dataclasses.asdict(plan) | {"stages": stages, "peak": plan.peak, "fits": plan.fits}
        return self.paper.record() | {"compiled": found, "off": self.off}


def compiled_rows(choice: PlanChoice) -> list[CompiledRow]:
    """Every combination of meshes, numbers of frames and ratios, compiled for the slice.

    Raises:
      JvidpruneError: what `plan` raises, an unknown slice, or a mesh that is not as large as the slice.
    """
    import jax.numpy as jnp

    from jvidprune.costs.compiled import slice_named
    from jvidprune.costs.compiled_step import compile_step

    where = slice_named(choice.compile)
    found = []
    for config, sizes, paper in planned(dataclasses.replace(choice, chip=where.chip.name), chips=len(where.devices)):
        if choice.train:
            size = {"frames": paper.frames, "ratio": paper.ratio, "text": choice.text, "batch": choice.batch}
            plan = compile_step(config, where, sizes, **size, dtype=jnp.dtype(choice.dtype))
            found.append(CompiledRow(paper, plan))
            continue
        found.append(CompiledRow(paper, compiled_answer(choice, config, where, sizes, paper)))
    return found


def compiled_answer(
    choice: PlanChoice, config: Any, where: "Slice", sizes: "Sizes", paper: PlanRow, **only: Any
) -> "CompiledPlan":
    """The programs of an answer as it was planned on paper.

    Args:
      choice: what to plan.
      config, sizes, paper: from `planned`.
      where: the slice.
      **only: which programs, see `compile_answer`.

    Raises:
      JvidpruneError: see `compile_answer`.
    """
    import jax.numpy as jnp

    from jvidprune.costs.compiled import compile_answer
    from jvidprune.costs.memory import video_shape
    from jvidprune.reducers.registry import for_model

    return compile_answer(
        config,
        where,
        sizes,
        shape=video_shape(config, paper.frames, paper.layout),
        layout=paper.layout,
        reducer=for_model(choice.reducer, config),
        ratio=paper.ratio,
        visual=paper.kept + paper.newlines,
        prompt=paper.prompt,
        new_tokens=choice.new_tokens,
        batch=choice.batch,
        dtype=jnp.dtype(choice.dtype),
        **only,
    )


def remedy(row: CompiledRow, choice: PlanChoice, chips: int) -> str:
    """One sentence on a plan that does not fit: by how much, and which changes would do.

    A change is judged by the plan on paper, whose bytes beside the weights are corrected by the compiler's.
    """
    plan, paper = row.compiled, row.paper
    excess = plan.peak - plan.available
    worst = max(plan.stages, key=lambda stage: stage.working + stage.over)
    begins = f"{paper.model} with {paper.frames} frames at ratio {paper.ratio:g} does not fit {plan.slice}: "
    if row.trains:
        more = "a mesh with more of fsdp or tensor, fewer frames or a smaller ratio would need less"
        return f"{begins}a training step exceeds a chip by {excess / _GIB:.1f} GiB; {more}."

    working = (plan.peak - plan.weights) / (paper.memory.peak - paper.memory.parameters)

    def fits(**changes: Any) -> bool:
        other = dataclasses.replace(choice, chip=paper.chip.name, **changes)
        ((_, _, found),) = planned(other, chips=chips)
        need = found.memory.parameters + working * (found.memory.peak - found.memory.parameters)
        return need <= plan.available

    now = {"mesh": (mesh_text(paper.mesh),), "frames": str(paper.frames), "ratios": f"{paper.ratio:g}"}
    advice = []
    for tensor in (size for size in (2, 4, 8, 16) if size > paper.mesh["tensor"] and chips % size == 0):
        if _heads_divide(choice.model, tensor) and fits(**now | {"mesh": (f"tensor={tensor}",)}):
            advice.append(f"--mesh tensor={tensor}")
            break
    frames = paper.frames // 2
    while frames and not fits(**now | {"frames": str(frames)}):
        frames //= 2
    advice += [f"--frames {frames}"] if frames else []
    for ratio in (r for r in (0.5, 0.25, 0.1, 0.05) if r < paper.ratio):
        if worst.name != "encode" and fits(**now | {"ratios": f"{ratio:g}"}):
            advice.append(f"--ratios {ratio:g}")
            break
    would = f"{' or '.join(advice)} would do" if advice else "take a larger slice or a smaller model"
    return f"{begins}{worst.name} exceeds a chip by {excess / _GIB:.1f} GiB; {would}."


def compiled_table(row: CompiledRow) -> "Table":
    """A program a line: what one chip holds beside the weights, and what it reads and writes."""
    from rich import box
    from rich.table import Table

    from jvidprune.costs.roofline import REACHED_BANDWIDTH

    plan, paper = row.compiled, row.paper
    caption = (
        f"MiB in, temporary and out beside the weights; HBM ms at {REACHED_BANDWIDTH:.0%} of its bandwidth; paper ms "
        f"as the plan without --compile expects. One "
        f"chip holds {plan.peak / _GIB:.2f} of {plan.available / _GIB:.2f} GiB, {plan.weights / _GIB:.2f} of them "
    )
    if row.off is None:
        caption += "parameters and moments"
    else:
        caption += f"weights; on paper {paper.memory.peak / _GIB:.2f} GiB (the compiler says {row.off - 1:+.0%})"
    title = f"{paper.model} · {plan.slice} · {mesh_text(plan.mesh)} · {paper.frames} frames · ratio {paper.ratio:g}"
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, caption_justify="left")
    table.add_column("program", no_wrap=True)
    for name in ("in", "temporary", "out", "HBM GB", "HBM ms", "paper ms", "compiled"):
        table.add_column(name, justify="right", no_wrap=True)
    times = [""] if row.trains else [f"{1000 * time.seconds:,.1f}" for time in paper.stages]
    for stage, expected in zip(plan.stages, times, strict=True):
        sizes = [f"{size / 2**20:,.0f}" for size in (stage.inputs, stage.temporaries, stage.outputs)]
        milliseconds = 1000 * stage.moved / (REACHED_BANDWIDTH * paper.chip.bandwidth)
        moved = f"{stage.moved / 1e9:,.1f}", f"{milliseconds:,.1f}", expected
        table.add_row(_title(stage.name), *sizes, *moved, f"{stage.took:.0f} s")
    return table


def messages_table(row: CompiledRow) -> "Table":
    """What one chip tells the others: a kind of message of a program a line."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="collectives")
    for name in ("program", "kind", "number", "MB of one chip"):
        table.add_column(name, justify="left" if name in ("program", "kind") else "right")
    for stage in row.compiled.stages:
        if stage.over:
            table.add_row(_title(stage.name), f"no program: {stage.over / _GIB:.1f} GiB too large", "", "")
        for kind, (count, size) in sorted(stage.collectives.items()):
            table.add_row(_title(stage.name), kind, f"{count:,.0f}", f"{size / 1e6:,.1f}")
        if not stage.collectives and not stage.over:
            table.add_row(_title(stage.name), "none", "", "")
    return table


def _title(stage: str) -> str:
    return {"token": "one token more", "step": "training step"}.get(stage, stage)


def _heads_divide(model: str, tensor: int) -> bool:
    from jvidprune.cli.paper import config_named

    return config_named(model).units.get("heads", 0) % tensor == 0
