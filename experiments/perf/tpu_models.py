"""Towers, prefills and the training step of STTS compiled for slices of TPUs, at published sizes, without weights."""

import dataclasses
import time
from typing import Any

from jvidprune.cli.plan_compiled import compiled_answer
from jvidprune.cli.plan_rows import PlanChoice, planned
from jvidprune.costs.compiled import CompiledPlan, CompiledStage, Slice, slice_named
from jvidprune.costs.compiled_step import compile_step

MODELS = (
    "llava-onevision-7b",
    "qwen2.5-vl-7b",
    "qwen3-vl-8b",
    "videollama3-7b",
    "molmo2-8b",
    "llava-video-7b",
    "internvl3-8b",
    "qwen3-vl-30b-a3b",
    "qwen3.5-9b",
)
"""One of every family."""

ONE_CHIP = "v5e"
MESHES: dict[str, tuple[str, int]] = {
    "v5e:2x4": ("data=2,tensor=4", 1),
    "v5p:4x4x4": ("data=16,tensor=4", 16),
    "v6e:16x16": ("data=64,tensor=4", 64),
    ONE_CHIP: ("tensor=1", 1),
}
"""Slice -> mesh, and how many prompts are read together: one for every copy of the model where there are many."""

WITH_EVIDENCE = ("holov", "aot")
"""Methods whose towers tell the attention that tokens receive: in the last block, and in two."""

STEP_BEHIND = "v5e:2x4"
"""The slice behind whose rows come the training step and the towers with evidence."""

FRAMES = 32
TEXT = 57
STEP = ("llava-onevision-7b", "v6e:16x16", "data=4,fsdp=16,tensor=4")


@dataclasses.dataclass(frozen=True)
class ModelCell:
    """A program of a model.

    Attributes:
      model: of `MODELS`.
      stage: encode, prefill, or step.
      where: slice.
      ratio: share of the visual tokens that the prompt has; of the windows that stay, for a step.
      reducer: what makes the prompt; a control at the ratio has the same prompt as any method of exact count.
    """

    model: str
    stage: str
    where: str
    ratio: float = 1.0
    reducer: str = "none"

    @property
    def key(self) -> str:
        """Name of the row."""
        return f"{self.stage} {self.model} {self.reducer} ratio={self.ratio:g} T={FRAMES} {self.where} {self.mesh}"

    @property
    def mesh(self) -> str:
        """As on the command line."""
        return STEP[2] if self.stage == "step" else MESHES[self.where][0]


def model_cells() -> list[ModelCell]:
    """All programs, the most important first."""
    found = []
    step = ModelCell(STEP[0], "step", STEP[1], 0.5, "stts")
    for where in MESHES:
        for model in MODELS:
            found += [ModelCell(model, "prefill", where), ModelCell(model, "prefill", where, 0.1, "random")]
            found.append(ModelCell(model, "encode", where))
        if where == STEP_BEHIND:
            found.append(step)
            found += [ModelCell(STEP[0], "encode", where, 0.3, reducer) for reducer in WITH_EVIDENCE]
    return found


def run_model(cell: ModelCell) -> dict[str, Any]:
    """One row, in bytes and seconds; `over` is what a chip lacks where there is no program."""
    chip = slice_named("v5e:2x2") if cell.where == ONE_CHIP else slice_named(cell.where)
    where = Slice(cell.where, chip.chip, chip.devices[:1]) if cell.where == ONE_CHIP else chip
    batch = MESHES[cell.where][1] if cell.stage == "prefill" else 1
    choice = PlanChoice(
        cell.model,
        chip=where.chip.name,
        frames=str(FRAMES),
        ratios=f"{cell.ratio}",
        reducer="none" if cell.stage == "step" else cell.reducer,
        mesh=(cell.mesh,),
        text=TEXT,
        batch=batch,
    )
    ((config, sizes, paper),) = planned(choice, chips=len(where.devices))
    worked = time.process_time()
    plan: CompiledPlan
    if cell.stage == "step":
        plan = compile_step(config, where, sizes, frames=FRAMES, ratio=cell.ratio, text=TEXT)
    else:
        plan = compiled_answer(choice, config, where, sizes, paper, only=(cell.stage,))
    (stage,) = plan.stages
    return _row(plan, stage, paper.prompt, batch) | {"compile_cpu_s": time.process_time() - worked}


def _row(plan: CompiledPlan, stage: CompiledStage, prompt: int, batch: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "batch": batch,
        "all_weights": plan.weights,
        "available": plan.available,
        "weights": stage.weights,
        "inputs": stage.inputs,
        "temporaries": stage.temporaries,
        "outputs": stage.outputs,
        "main": stage.moved,
        "over": max(stage.over, plan.peak - plan.available, 0),
        "messages": [message._asdict() for message in stage.messages],
    }
