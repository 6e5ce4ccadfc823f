"""`jvidprune reduce`: which tokens a method keeps and merges, drawn on the frames."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice, Video, print_json
from jvidprune.errors import JvidpruneError, JvidpruneWarning

if TYPE_CHECKING:
    import numpy as np

    from jvidprune.cli.console import Console

_FORMATS = (".html", ".png", ".mp4")


@dataclasses.dataclass(frozen=True)
class ReduceChoice:
    """What is drawn, and where."""

    reducer: str = "flashvid"
    """Method (`jvidprune methods`), with settings as in "stop(base=fastvid)", a chain as in "visionzip + flashvid", or
    one of your own as in "./my_reducer.py:Mine"."""
    compare: str = ""
    """Several methods separated by commas, drawn side by side; replaces `reducer`."""
    ratio: float = 0.1
    """Retention ratio in (0, 1]."""
    question: str = ""
    """For methods that read it, such as cdpruner, and for --layers."""
    layers: bool = False
    """Draw what a method does inside the language model while it reads a prompt: which visual tokens each stretch of
    layers keeps, brings back or runs on (.html or .png)."""
    save: Annotated[Path, arg(name="out")] = Path("reduction.html")
    """Where to draw it: .html, .png or .mp4."""

    def names(self) -> list[str]:
        """The methods.

        Raises:
          JvidpruneError: a list without any.
        """
        from jvidprune.expressions import split_list

        names = split_list(self.compare) if self.compare else [self.reducer]
        if not names:
            raise JvidpruneError(f"compare takes methods separated by commas, got {self.compare!r}.")
        return names


CHOICE = ReduceChoice()


def reduce(
    video: Video = None,
    /,
    *,
    choice: Annotated[ReduceChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Show which tokens of a video are kept and which are merged into which, drawn on its frames."""
    console = out.console()
    record = draw_reduction(video, choice, model=model, console=console)
    if out.json:
        print_json(record)
    elif out.quiet:
        print(choice.save)
    else:
        show_reduction(console, record)


def draw_reduction(
    path: Path | None, choice: ReduceChoice, *, model: ModelChoice, console: "Console"
) -> dict[str, Any]:
    """Reduces a video with one or several methods and draws what they did; a record of it for machines."""
    import warnings

    from jvidprune.cli import reading
    from jvidprune.files import atomic_output, check_writable
    from jvidprune.llm.encoded import reduce_video
    from jvidprune.llm.stages import StageClock
    from jvidprune.reducers.registry import title
    from jvidprune.tokens import QUESTION
    from jvidprune.viz.decision import decision_of
    from jvidprune.viz.drawn import check_drawn, drawn_frames
    from jvidprune.viz.overlay import write_picture
    from jvidprune.viz.report import reduction_page

    names, ratio, out = choice.names(), choice.ratio, choice.save
    if choice.layers:
        if len(names) > 1:
            raise JvidpruneError("--layers draws one method: name it with --reducer.")
        from jvidprune.cli.ask import QUESTION as USUAL
        from jvidprune.cli.layers import draw_layers

        asked = choice.question or USUAL
        return draw_layers(path, names[0], ratio, asked, out, model=model, console=console)
    if out.suffix.lower() not in _FORMATS:
        raise JvidpruneError(f"cannot draw to {out}: the suffix must be one of {', '.join(_FORMATS)}.")
    limits = reading.check_reading(model)
    reading.check_asked(path, names, ratio)
    check_writable(out)
    with console.working():
        reading.check_fits(path, model, limits)
        llm = reading.open_model(model, console)
        methods = {name: llm.reducer(name) for name in names}
        needs = frozenset().union(*(method.needs for method in methods.values()))
        clock = StageClock(console.start)
        clip = reading.read_clip(path, llm, model, clock, console)
        check_drawn(llm, clip)
        encoded = reading.encode_clip(clip, llm, needs - QUESTION, clock)
        video = encoded.tokens
        decisions, refused = [], {}
        for name, method in methods.items():
            try:
                with clock("reduce") as stage, warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", JvidpruneWarning)
                    if method.needs & QUESTION and not choice.question:
                        raise JvidpruneError(f"{title(name)} reads the question: give one with --question.")
                    known = llm.with_evidence(encoded, method, choice.question)
                    decisions.append(decision_of(reduce_video(known, method, ratio, diagnostics=True), title(name)))
                    stage.tokens = decisions[-1].count
                for one in said:
                    console.note(str(one.message))
            except JvidpruneError as error:
                # What one method cannot, the others still can.
                refused[name] = str(error)
                console.note(f"{name} is left out: {error}")
        if not decisions:
            raise JvidpruneError(next(iter(refused.values())))
        console.start("drawing")
        frames, labels = drawn_frames(clip, video.features.shape[0])
        with atomic_output(out) as part:
            if out.suffix.lower() == ".html":
                page = reduction_page(
                    frames,
                    decisions,
                    labels,
                    title=f"What {_listing([d.method for d in decisions])} {'keep' if len(decisions) > 1 else 'keeps'}",
                    subtitle=f"{path.name if path else 'generated clip'} · {len(frames)} frames of "
                    f"{video.grid[0]}×{video.grid[1]} tokens · {llm.loaded.family} · retention ratio {ratio:.0%}",
                )
                part.write_text(page, encoding="utf8")
            else:
                write_picture(part, frames, decisions, labels, _save_film)
    rows = [
        {
            "method": decision.method,
            "ratio": ratio,
            "tokens": decision.count,
            "achieved": decision.achieved,
            "per_frame": decision.per_frame().tolist(),
        }
        for decision in decisions
    ]
    stages = [dataclasses.asdict(stage) for stage in clock.stages]
    return {"out": str(out), "frames": len(frames), "methods": rows, "stages": stages, "refused": refused}


def _save_film(path: Path, film: "np.ndarray") -> None:
    from jvidprune.procedural.clips import write_mp4

    write_mp4(path, film, 4.0)


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def show_reduction(console: "Console", record: dict[str, Any]) -> None:
    """Where the drawing is, and the count of every method."""
    from rich import box
    from rich.table import Table

    from jvidprune.cli.console import marked

    table = Table(box=box.SIMPLE_HEAD)
    layers = any("restored" in row for row in record["methods"])
    table.add_column("layers" if layers else "method")
    for name in ("tokens", "of all", "back again") if layers else ("asked", "tokens", "of all"):
        table.add_column(name, justify="right")
    for row in record["methods"]:
        cells = [f"{row['tokens']:,}", f"{row['achieved']:.1%}"]
        cells = [*cells, f"{row['restored']:,}"] if layers else [f"{row['ratio']:.1%}", *cells]
        table.add_row(row["method"], *cells)
    console.print(table)
    console.print(f"drawn on {record['frames']} frames: [bold]{marked(record['out'])}[/bold]")
