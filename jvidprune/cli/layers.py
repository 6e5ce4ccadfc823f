"""`jvidprune reduce --layers`: what a method does inside the language model, layer by layer, drawn on the frames."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jvidprune.cli.options import ModelChoice
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


def draw_layers(
    path: Path | None,
    name: str,
    ratio: float,
    question: str,
    out: Path,
    *,
    model: ModelChoice,
    console: "Console",
) -> dict[str, Any]:
    """Reads one prompt with a method, and draws which visual tokens each stretch of its layers holds.

    Args:
      path: of the video; None for the generated clip.
      name: the method as it was typed.
      ratio: retention ratio.
      question: that the prompt asks.
      out: .html or .png.
      model: which model.
      console: talks to people.

    Returns:
      A record for machines.

    Raises:
      JvidpruneError: another suffix, a method that does nothing inside this language model, or what `ask` raises.
    """
    from jvidprune.cli import reading
    from jvidprune.files import atomic_output, check_writable
    from jvidprune.llm.encoded import clip_of
    from jvidprune.llm.inside import STEPS, trace
    from jvidprune.llm.stages import StageClock
    from jvidprune.reducers.registry import title
    from jvidprune.viz.decision import stage_decision
    from jvidprune.viz.drawn import check_drawn, drawn_frames
    from jvidprune.viz.overlay import write_picture
    from jvidprune.viz.report import inside_page

    if out.suffix.lower() not in (".html", ".png"):
        raise JvidpruneError(f"layers cannot be drawn to {out}: the suffix must be .html or .png.")
    limits = reading.check_reading(model)
    reading.check_asked(path, [name], ratio)
    check_writable(out)
    with console.working():
        reading.check_fits(path, model, limits, reading.Asked(question, name, ratio, STEPS))
        llm = reading.open_model(model, console)
        method, clock = llm.reducer(name), StageClock(console.start)
        clip = reading.read_clip(path, llm, model, clock, console)
        check_drawn(llm, clip)
        encoded = reading.encode_clip(clip, llm, method.needs, clock, question)
        with clock("reduce") as stage:
            reduced = llm.reduce(encoded, reducer=method, ratio=ratio)
            stage.tokens = reduced.kept
        with clock("prefill", "stages") as stage:
            found = trace(llm, reduced, question)
            stage.tokens = len(found)
        console.start("drawing")
        tokens = reduced.video.tokens
        steps, grid = tokens.features.shape[0], tokens.grid
        stages = [stage_decision(one, ratio, steps, grid) for one in found]
        frames, labels = drawn_frames(clip_of(reduced.video), steps)
        with atomic_output(out) as part:
            if out.suffix.lower() == ".html":
                page = inside_page(
                    frames,
                    stages,
                    labels,
                    title=f"What {title(name)} does inside the language model",
                    subtitle=f"{path.name if path else 'generated clip'} · {question} · {len(frames)} frames of "
                    f"{grid[0]}×{grid[1]} tokens · {llm.loaded.family}, {llm.loaded.config.text.layers} layers · "
                    f"retention ratio {ratio:.0%}",
                )
                part.write_text(page, encoding="utf8")
            else:
                write_picture(part, frames, stages, labels)
    rows = [
        {"method": one.name, "ratio": ratio, "tokens": int(one.kept.sum()), "restored": int(one.restored.sum())}
        | {"kind": one.kind, "achieved": stage.achieved}
        for one, stage in zip(found, stages, strict=True)
    ]
    timed = [dataclasses.asdict(stage) for stage in clock.stages]
    return {"out": str(out), "frames": len(frames), "methods": rows, "stages": timed, "refused": {}}
