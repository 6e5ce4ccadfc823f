"""What the page shows of a comparison, as HTML: a card for each method, and its tokens on one frame."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jvidprune.llm.stages import Stage
from jvidprune.serve.compare import Column, Comparison
from jvidprune.viz.overlay import LEGEND
from jvidprune.viz.pages import render
from jvidprune.viz.report import data_url

CSS = """
:root { --jv-soft: #5d5d58 } .dark { --jv-soft: #a3a39c }
.jv-note { color: var(--jv-soft); font-size: 14px; line-height: 1.5 }
.jv-error { border: 1px solid #d9480f; border-left-width: 5px; border-radius: 8px; padding: 10px 14px; font-size: 15px;
  color: var(--body-text-color); background: color-mix(in srgb, #d9480f 9%, transparent) }
.jv-grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(172px, 1fr)) }
.jv-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 13px 15px;
  background: var(--background-fill-primary); min-width: 0 }
.jv-card h3 { margin: 0; font-size: 15px; font-weight: 650; color: var(--body-text-color) }
.jv-answer { font-size: 25px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; margin: 5px 0 9px;
  overflow-wrap: anywhere; color: var(--body-text-color) }
.jv-small { color: var(--jv-soft); font-size: 13px; line-height: 1.5; font-variant-numeric: tabular-nums }
.jv-bar { display: flex; height: 8px; border-radius: 4px; overflow: hidden; margin: 0 0 6px;
  background: var(--border-color-primary) }
.jv-bar i { display: block; height: 100% } .jv-kept { background: #3b7bea } .jv-merged { background: #c79a2b }
.jv-part { white-space: nowrap; margin-right: 10px }
.jv-key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 5px 0 0 }
.jv-dropped { background: var(--border-color-primary) }
.jv-grid figure { margin: 0; min-width: 0 }
.jv-grid figure img { width: 100%; display: block; border-radius: 8px; background: #000 }
.jv-grid figcaption { color: var(--jv-soft); font-size: 13px; padding: 5px 1px 0;
  font-variant-numeric: tabular-nums }
.jv-grid figcaption b { color: var(--body-text-color); font-weight: 600 }
.jv-mark { display: inline-block; width: 14px; height: 14px; vertical-align: -2px; margin: 0 5px 0 12px }
.jv-mark:first-child { margin-left: 0 }
.jv-mark-kept { background: #6084aa; border: 2px solid #3fd0d9; outline: 1px solid #18181c }
.jv-mark-merged { background: #bcd3d8 } .jv-mark-dropped { background: #2d3237 }
"""
"""Style of the cards; colours are those of the page, light or dark."""

_PACKAGE = "jvidprune.serve"


class _Card(NamedTuple):
    """What a card says of a method; of one that refused the reason alone."""

    title: str
    refused: str = ""
    text: str = ""
    fates: Mapping[str, int] = MappingProxyType({})
    kept: int = 0
    total: int = 0
    prompt: int = 0
    times: str = ""


class _Figure(NamedTuple):
    """A frame with the tokens of a method."""

    title: str
    source: str
    tokens: int


def head(subtitle: str) -> str:
    """The title of the page, and which model reads the videos."""
    return render(_PACKAGE, "head.html", subtitle=subtitle)


def legend() -> str:
    """What is drawn on the frames."""
    return render(_PACKAGE, "legend.html", legend=LEGEND)


def note(text: str) -> str:
    """A sentence in the place of answers or frames."""
    return render(_PACKAGE, "note.html", text=text, error=False)


def error_banner(sentence: str) -> str:
    """A sentence that stands out."""
    return render(_PACKAGE, "note.html", text=sentence, error=True)


def cards(found: Comparison) -> str:
    """A card for each method: answer, tokens, times."""
    made = [_card(column) for column in found.columns]
    return render(_PACKAGE, "cards.html", cards=made, frames=len(found.frames), shared=times(found.stages))


def figures(found: Comparison, t: int) -> str:
    """One frame under the cards, with the tokens of each method."""
    made = [
        None
        if image is None or column.decision is None
        else _Figure(column.title, data_url(image, 90), int(column.decision.per_frame()[t]))
        for column, image in zip(found.columns, found.drawn(t), strict=True)
    ]
    where = {"frame": t + 1, "frames": len(found.frames), "label": found.labels[t]}
    return render(_PACKAGE, "figures.html", figures=made, **where)


def times(stages: Sequence[Stage]) -> str:
    """Stages with their times, e.g. "decode 12 ms · encode 0.31 s"."""
    return " · ".join(f"{stage.name} {_seconds(stage.seconds)}" for stage in stages)


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _card(column: Column) -> _Card:
    answer, decision = column.answer, column.decision
    if answer is None or decision is None:
        return _Card(column.title, column.refused)
    return _Card(
        column.title,
        text=answer.text.strip(),
        fates=decision.fates(),
        kept=answer.kept,
        total=decision.frames * decision.tokens_per_frame,
        prompt=answer.prompt,
        times=times(answer.stages),
    )
