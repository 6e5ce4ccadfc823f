"""`jvidprune ask`: one question about one video, with what each stage cost."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice, Video, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from jvidprune.cli.console import Console
    from jvidprune.llm.stages import Stage
    from jvidprune.llm.video_llm import Answer
    from jvidprune.reducers.protocol import Reducer
    from jvidprune.tokens import Layout

QUESTION = "What is happening in this video?"
REDUCER, RATIO = "flashvid", 0.1
"""What a question is asked with where neither the user nor the checkpoint says otherwise."""


@dataclasses.dataclass(frozen=True)
class AskChoice:
    """How a question is asked."""

    reducer: str | None = None
    """Method (`jvidprune methods`), with settings as in "flashvid(alpha=0.5)", a chain as in "visionzip + flashvid",
    or one of your own as in "./my_reducer.py:Mine"; "none" keeps all tokens, "stts" is the scorer that a checkpoint of
    `jvidprune train stts` holds; by default the checkpoint's own (`jvidprune export`), or flashvid."""
    ratio: float | None = None
    """Retention ratio in (0, 1]; by default the checkpoint's own, or 0.1."""
    max_new_tokens: int = 64
    """Longest answer."""
    temperature: float = 0.0
    """0 answers greedily, above 0 samples."""
    top_p: float = 1.0
    """Share of probability that sampling draws from."""
    seed: int = 0
    """Seed of sampling."""
    times: bool = False
    """Put the times of the frames before the question, as LLaVA-Video's training did."""


CHOICE = AskChoice()


def ask(
    video: Video = None,
    question: Annotated[str, Positional, arg(metavar="QUESTION", help="What to ask.")] = QUESTION,
    /,
    *,
    choice: Annotated[AskChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Answer a question about a video from a few of its tokens, and show what each stage cost."""
    console = out.console()
    answer = answered(video, question, choice, model=model, console=console)
    if out.json:
        print_json(answer.record())
    elif out.quiet:
        print(answer.text)
    else:
        show_answer(console, answer)


def answered(
    path: Path | None, question: str, choice: AskChoice, *, model: ModelChoice, console: "Console"
) -> "Answer":
    """One question from file to answer; bad names and numbers are refused before anything is loaded.

    Where no reducer or ratio is given they are the checkpoint's own, else FlashVID's at `RATIO`.
    """
    from jvidprune.cli import reading
    from jvidprune.fields import Seed, checked
    from jvidprune.llm.clock import with_times
    from jvidprune.llm.encoded import clip_of
    from jvidprune.llm.stages import StageClock
    from jvidprune.models.checkpoint.load import read_config
    from jvidprune.models.generate import check_sampling
    from jvidprune.reducers.protocol import check_ratio, of_frames
    from jvidprune.reducers.serialise import load_pruning

    check_sampling(choice.max_new_tokens, choice.temperature, choice.top_p)
    checked(choice.seed, Seed, "seed")
    limits = reading.check_reading(model)
    names = [] if choice.reducer is None else [choice.reducer]
    reading.check_asked(path, names, RATIO if choice.ratio is None else choice.ratio)
    own = None
    if model.model is not None and None in (choice.reducer, choice.ratio):
        # This fetches the small files of a checkpoint of the hub.
        own = load_pruning(read_config(model.model, model.revision)[2], allow_code=model.allow_code)
    ratio = check_ratio((own.ratio if own else RATIO) if choice.ratio is None else choice.ratio)
    chosen = (own.reducer if own else REDUCER) if choice.reducer is None else choice.reducer
    with console.working():
        reading.check_fits(path, model, limits, reading.Asked(question, chosen, ratio, choice.max_new_tokens))
        llm = reading.open_model(model, console)
        # The loaded settings are bound to the model, where a method needs its weights.
        method = llm.reducer(chosen) if isinstance(chosen, str) else llm.pruning.reducer if llm.pruning else chosen
        clock = StageClock(console.start)
        if of_frames(method):
            # What it makes is what is encoded.
            video = reading.read_clip(path, llm, model, clock, console)
        else:
            video = reading.read_video(path, llm, method.needs, model, clock, console, question)
        with clock("encode" if of_frames(method) else "reduce") as stage:
            # Methods that read the question read it without the times.
            reduced = llm.reduce(video, reducer=method, ratio=ratio)
            stage.tokens = reduced.kept
        answer = llm.ask(
            reduced,
            with_times(question, clip_of(reduced.video)) if choice.times else question,
            clock=clock,
            max_new_tokens=choice.max_new_tokens,
            temperature=choice.temperature,
            top_p=choice.top_p,
            seed=choice.seed,
        )
    return priced(answer, llm.loaded.config, reduced.whole or reduced.video.tokens.layout(), method)


def priced(answer: "Answer", config: Any, layout: "Layout", reducer: "Reducer") -> "Answer":
    """The answer with the FLOPs of each stage that is counted.

    Args:
      answer: from `VideoLLM.ask`.
      config: of the model.
      layout: of the video.
      reducer: that was used.
    """
    from jvidprune.costs.flops import count, newline_tokens
    from jvidprune.reducers.protocol import with_defaults

    steps = next((stage.tokens for stage in answer.stages if stage.name == "generate"), 1)
    seen = with_defaults(reducer).seen(layout, answer.ratio)
    report = count(
        config,
        layout,
        reducer=reducer,
        ratio=answer.ratio,
        kept=answer.kept,
        prompt=answer.prompt,
        new_tokens=steps,
        newlines=min(newline_tokens(config, seen, reducer), answer.prompt - answer.kept),
    )
    stages = (dataclasses.replace(stage, flops=report.timed(stage.name)) for stage in answer.stages)
    return dataclasses.replace(answer, stages=tuple(stages))


def show_answer(console: "Console", answer: "Answer") -> None:
    """The answer and its stage table."""
    from jvidprune.cli.console import marked

    console.print(f"\n[bold]{marked(answer.question)}[/bold]")
    console.print(marked(answer.text) or "[dim](empty answer)[/dim]", plain=True)
    console.print()
    share = f"{answer.kept:,} of {answer.visual:,} visual tokens ({answer.kept / answer.visual:.1%})"
    kept = f"{answer.reducer} kept {share}"
    console.print(stage_table(answer.stages, kept))
    if answer.untrained:
        console.print(
            "[yellow]The weights of this model are random: its answers are noise, its costs are real.[/yellow]"
        )


def stage_table(stages: "Iterable[Stage]", caption: str) -> "Table":
    """Seconds, compile seconds, what was produced, its rate and the GFLOP it took, a row a stage."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("stage")
    for name in ("seconds", "compile s", "produced", "per second", "GFLOP"):
        table.add_column(name, justify="right")
    for stage in stages:
        table.add_row(
            stage.name,
            f"{stage.seconds:.3f}",
            f"{stage.compile_seconds:.2f}",
            f"{stage.tokens:,} {stage.unit}",
            f"{stage.rate:,.0f}",
            "" if stage.flops is None else f"{stage.flops / 1e9:,.3g}",
        )
    return table
