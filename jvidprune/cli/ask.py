"""`jvidprune ask`: one question about one video, with what each stage cost."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice, Video, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
    max_new_tokens: int | None = None
    """Longest answer; 64 by default."""
    temperature: float | None = None
    """0 answers greedily, which is the default; above 0 samples."""
    top_p: float | None = None
    """Share of probability that sampling draws from."""
    top_k: int | None = None
    """Most probable tokens that sampling draws from, 0 for all."""
    min_p: float | None = None
    """Least probability that sampling draws from, as a share of the largest."""
    repetition_penalty: float | None = None
    """What ids of the prompt and the answer are made less likely by, 1 for nothing."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    seed: int = 0
    """Seed of sampling."""
    samples: int = 1
    """Answers, of as many seeds."""
    generation: Literal["greedy", "folder"] = "greedy"
    """What holds for settings that are not given: "folder" reads the checkpoint's generation_config.json."""
    stream: bool = False
    """Write the answer as it comes."""
    system: str | None = None
    """What the model is told before, in place of its own system turn."""
    times: bool = False
    """Put the times of the frames before the question, as LLaVA-Video's training did."""

    @property
    def generating(self) -> dict[str, Any]:
        """What `VideoLLM.ask` takes of generation."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        given = {name: getattr(self, name) for name in names}
        return given | {"stop": self.stop or None, "defaults": self.generation}


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
    streamed = choice.stream and not out.json
    answer = answered(video, question, choice, model=model, console=console, write=_write if streamed else None)
    if streamed:
        print()
        if not out.quiet:
            show_answer(console, answer, text=False)
    elif out.json:
        print_json(answer.record())
    elif out.quiet:
        print(answer.text)
    else:
        show_answer(console, answer)


def answered(
    path: Path | None,
    question: str,
    choice: AskChoice,
    *,
    model: ModelChoice,
    console: "Console",
    write: "Callable[[str], None] | None" = None,
) -> "Answer":
    """One question from file to answer, given to `write` piece by piece if there is one.

    Bad names and numbers are refused before anything is loaded.

    Where no reducer or ratio is given they are the checkpoint's own, else FlashVID's at `RATIO`.
    """
    from jvidprune.cli import reading
    from jvidprune.errors import JvidpruneError
    from jvidprune.fields import Count, Seed, checked
    from jvidprune.llm.encoded import clip_of
    from jvidprune.llm.generation import MAX_NEW_TOKENS
    from jvidprune.llm.prompts.llava import with_times
    from jvidprune.llm.stages import StageClock
    from jvidprune.models.checkpoint.load import read_config
    from jvidprune.models.sampling import Sampling, check_stops
    from jvidprune.reducers.protocol import check_ratio, of_frames
    from jvidprune.reducers.serialise import load_pruning

    settings = {field.name: getattr(choice, field.name) for field in dataclasses.fields(Sampling)}
    Sampling(**{name: value for name, value in settings.items() if value is not None})
    check_stops(choice.stop)
    checked(choice.seed, Seed, "seed")
    checked(choice.samples, Count, "samples")
    if choice.max_new_tokens is not None:
        checked(choice.max_new_tokens, Count, "max_new_tokens")
    if choice.stream and choice.samples > 1:
        raise JvidpruneError("one answer is streamed: leave --samples out.")
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
        asked = reading.Asked(question, chosen, ratio, choice.max_new_tokens or MAX_NEW_TOKENS)
        reading.check_fits(path, model, limits, asked)
        llm = reading.open_model(model, console)
        # The loaded settings are bound to the model, where a method needs its weights.
        method = llm.reducer(chosen) if isinstance(chosen, str) else llm.pruning.reducer if llm.pruning else chosen
        clock = StageClock(console.start)
        video: Any = reading.read_clip(path, llm, model, clock, console)
        # Of a method of other frames, what it makes is what is encoded.
        if not of_frames(method):
            video = reading.encode_clip(video, llm, method.needs, clock, question)
        with clock("encode" if of_frames(method) else "reduce") as stage:
            # Methods that read the question read it without the times.
            reduced = llm.reduce(video, reducer=method, ratio=ratio)
            stage.tokens = reduced.kept
        if choice.times:
            question = with_times(question, clip_of(reduced.video))
        how: dict[str, Any] = {"clock": clock, "system": choice.system, **choice.generating}
        # Bars and an answer as it comes would write over each other: what streams is read and written behind them.
        answer = None if write is not None else llm.ask(reduced, question, samples=choice.samples, **how)
    if answer is None:
        stream = llm.stream(reduced, question, **how)
        for piece in stream:
            (write or _write)(piece)
        answer = stream.answer
    # What several maps of a picture cost is not counted.
    return (
        answer if reduced.beside else priced(answer, llm.loaded.config, reduced.whole or reduced.video.layout, method)
    )


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


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def show_answer(console: "Console", answer: "Answer", *, text: bool = True) -> None:
    """The answer and its stage table, without its text where that was written before."""
    from jvidprune.cli.console import marked

    if text:
        console.print(f"\n[bold]{marked(answer.question)}[/bold]")
        for one in answer.texts or (answer.text,):
            console.print(marked(one) or "[dim](empty answer)[/dim]", plain=True)
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
