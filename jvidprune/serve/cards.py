"""What the page shows of a comparison, as HTML: a card for each method, and its tokens on one frame."""

import html
from collections.abc import Sequence

from jvidprune.llm.stages import Stage
from jvidprune.serve.compare import Column, Comparison
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
.jv-mark { border: 2px solid #fff; outline: 1px solid #8888; display: inline-block; width: 12px; height: 12px;
  vertical-align: -2px; margin: 0 4px 0 12px; background: #888 }
.jv-mark:first-child { margin-left: 0 }
"""
"""Style of the cards; colours are those of the page, light or dark."""

LEGEND = (
    '<div class="jv-note"><span class="jv-mark"></span>outlined: kept'
    '<span class="jv-mark" style="background:#c79a2bcc;border-color:transparent"></span>tinted: merged into the token '
    'outlined in that colour<span class="jv-mark" style="background:#222;border-color:transparent"></span>dark: dropped'
    " · lines: where a token went, blue in its own frame, white from an earlier one · red rings: sinks</div>"
)


def error_banner(sentence: str) -> str:
    """A sentence that stands out."""
    return f'<div class="jv-error" role="alert">{html.escape(sentence)}</div>'


def cards(found: Comparison) -> str:
    """A card for each method: answer, tokens, times."""
    shared = times(found.stages)
    note = f"once for all methods: {shared}" if shared else "the video was read and encoded before"
    head = f'<div class="jv-note">{len(found.frames)} frames · {note} · compilation left out</div>'
    return f'{head}<div class="jv-grid">{"".join(_card(column) for column in found.columns)}</div>'


def figures(found: Comparison, t: int) -> str:
    """One frame under the cards, with the tokens of each method."""
    parts = []
    for column, image in zip(found.columns, found.drawn(t), strict=True):
        if image is None or column.decision is None:
            parts.append("<figure></figure>")
            continue
        here, title = int(column.decision.per_frame()[t]), html.escape(column.title)
        alt = f"frame {t + 1} with the tokens of {title}"
        caption = f"<b>{title}</b> · frame {t + 1} of {len(found.frames)} · {found.labels[t]} · {here} tokens"
        parts.append(
            f'<figure><img alt="{alt}" src="{data_url(image, 90)}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div class="jv-grid">{"".join(parts)}</div>'


def times(stages: Sequence[Stage]) -> str:
    """Stages with their times, e.g. "decode 12 ms · encode 0.31 s"."""
    return " · ".join(f"{stage.name} {_seconds(stage.seconds)}" for stage in stages)


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _card(column: Column) -> str:
    title = html.escape(column.title)
    if column.answer is None or column.decision is None:
        return f'<div class="jv-card"><h3>{title}</h3><p class="jv-small">{html.escape(column.refused)}</p></div>'
    answer, decision = column.answer, column.decision
    total = decision.frames * decision.tokens_per_frame
    kept = int(decision.kept().sum())
    merged = int(((decision.slot >= 0) & ~decision.kept().reshape(-1)).sum())
    shares = "".join(
        f'<i class="jv-{kind}" style="width:{100 * count / total:.2f}%"></i>'
        for kind, count in (("kept", kept), ("merged", merged))
    )
    counts = {"kept": kept, "merged": merged, "dropped": total - kept - merged}
    parts = "".join(
        f'<span class="jv-part"><span class="jv-key jv-{kind}"></span>{kind} {count:,}</span>'
        for kind, count in counts.items()
    )
    text = html.escape(answer.text.strip()) or "(no words)"
    return (
        f'<div class="jv-card"><h3>{title}</h3><div class="jv-answer">{text}</div><div class="jv-bar">{shares}</div>'
        f'<div class="jv-small"><b>{answer.kept:,} of {total:,} tokens</b> ({answer.kept / total:.1%}), '
        f"prompt of {answer.prompt:,}</div>"
        f'<div class="jv-small">{parts}</div>'
        f'<div class="jv-small">{times(answer.stages)}</div></div>'
    )
