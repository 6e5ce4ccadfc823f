"""A self-contained page: the frames with every token marked, side by side for several methods."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from jvidprune.viz.decision import Decision
from jvidprune.viz.overlay import LEGEND, fit, legend_of
from jvidprune.viz.pages import render


def data_url(image: np.ndarray, quality: int = 82) -> str:
    """A JPEG data URL of an (H, W, 3) uint8 image."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def flow_lists(decision: Decision) -> dict[int, list[list[float]]]:
    """Targets and shares of every token that went somewhere, as [[id, share], ...] by token."""
    found: dict[int, list[list[float]]] = {}
    for token, place in zip(*np.nonzero(decision.flow >= 0), strict=True):
        target = [int(decision.flow[token, place]), round(float(decision.share[token, place]), 3)]
        found.setdefault(int(token), []).append(target)
    return found


def reduction_page(
    frames: np.ndarray,
    decisions: Sequence[Decision],
    labels: Sequence[str],
    *,
    title: str,
    subtitle: str,
    width: int = 384,
) -> str:
    """The page as one string: no network, no files beside it, follows the reader's light or dark setting.

    Args:
      frames: (T, H, W, 3) uint8.
      decisions: methods on these frames.
      labels: caption of each frame.
      title, subtitle: plain text.
      width: pixels of the embedded frames.
    """
    methods = [
        {
            "method": decision.method,
            "ratio": decision.ratio,
            "grid": list(decision.grid),
            "total": decision.total,
            "index": decision.index.tolist(),
            "mass": decision.mass.tolist(),
            "slot": decision.slot.tolist(),
            "flow": flow_lists(decision),
            "sink": None if decision.sink is None else [round(float(s), 3) for s in decision.sink],
        }
        for decision in decisions
    ]
    data = {**_pictures(frames, labels, width), "methods": methods}
    return render(
        "jvidprune.viz",
        "reduction.html",
        title=title,
        subtitle=subtitle,
        data=data,
        legend=LEGEND,
        links=any((decision.flow >= 0).any() for decision in decisions),
        sinks=any(decision.sink is not None for decision in decisions),
    )


def _pictures(frames: np.ndarray, labels: Sequence[str], width: int) -> dict[str, Any]:
    """The frames and their captions as a page holds them."""
    return {"images": [data_url(fit(frame, width)) for frame in frames], "labels": list(labels)}


def inside_page(
    frames: np.ndarray,
    stages: Sequence[Decision],
    labels: Sequence[str],
    *,
    title: str,
    subtitle: str,
    width: int = 384,
) -> str:
    """A page of one method inside the language model: a list of its stages, and the frames of the one that is chosen.

    Args:
      frames: (T, H, W, 3) uint8.
      stages: of `viz.decision.stage_decision`, on one grid.
      labels: caption of each frame.
      title, subtitle: plain text.
      width: pixels of the embedded frames.
    """
    shown = [
        {
            "name": stage.method,
            "kind": stage.stage,
            "index": stage.index.tolist(),
            "mass": stage.mass.tolist(),
            "slot": stage.slot.tolist(),
            "restored": [] if stage.restored is None else np.flatnonzero(stage.restored).tolist(),
        }
        for stage in stages
    ]
    data = {
        **_pictures(frames, labels, width),
        "grid": list(stages[0].grid),
        "total": stages[0].total,
        "stages": shown,
        # All tokens are there before the first cut, which shows nothing.
        "first": min(1, len(stages) - 1),
    }
    return render(
        "jvidprune.viz", "inside.html", title=title, subtitle=subtitle, data=data, legend=legend_of(list(stages))
    )
