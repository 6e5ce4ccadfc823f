"""Decisions drawn on frames: kept tokens in colour, merged ones in the tint of their row, dropped ones dark."""

import colorsys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.viz.decision import Decision

_DROPPED = 0.28
_MERGED_TINT = 0.45
_LEGEND = "outlined: kept · tinted: merged into the token outlined in that colour · dark: dropped"
_LINES = " · line: where a token went, in its own frame (blue) or an earlier one (white, from the dot), by share"
_RINGS = " · red: sink"
_FLOW_COLOURS = ((255, 255, 255), (120, 220, 255))
"""Of flows to another frame and inside a frame."""
_FAINT = 0.1
_SHARPER = 3


def row_colours(decision: Decision) -> np.ndarray:
    """(R, 3) uint8: one hue per output row that merged several tokens, white for the others.

    Consecutive rows get hues a golden angle apart, so neighbours differ.
    """
    colours = np.full((decision.count, 3), 255, np.uint8)
    for row in np.flatnonzero(decision.mass > 1):
        rgb = colorsys.hsv_to_rgb((row * 0.61803398875) % 1.0, 0.75, 1.0)
        colours[row] = [round(255 * c) for c in rgb]
    return colours


def legend(decision: Decision) -> str:
    """What the marks of this decision mean."""
    return _LEGEND + _LINES * bool((decision.flow >= 0).any()) + _RINGS * (decision.sink is not None)


def fit(frame: np.ndarray, width: int) -> np.ndarray:
    """A frame scaled to `width` pixels, aspect ratio kept."""
    from PIL import Image

    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def draw_frame(frame: np.ndarray, decision: Decision, t: int) -> np.ndarray:
    """One frame with its tokens marked.

    Args:
      frame: (H, W, 3) uint8; the token grid covers the whole frame.
      decision: what was decided for the video.
      t: index of the frame.

    Returns:
      (H, W, 3) uint8.
    """
    h, w = decision.grid
    height, width, _ = frame.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    cell = rows[:, None] * w + columns[None, :]
    n = decision.tokens_per_frame
    kept = decision.kept()[t]
    slot = decision.slot[t * n : (t + 1) * n]
    colours = row_colours(decision)
    tint = np.zeros((n, 3), np.float32)
    tint[slot >= 0] = colours[slot[slot >= 0]]

    image = frame.astype(np.float32)
    grey = image.mean(-1, keepdims=True)
    state = np.where(kept, 2, np.where(slot >= 0, 1, 0))[cell][..., None]
    merged = (1 - _MERGED_TINT) * (0.6 * grey) + _MERGED_TINT * tint[cell]
    out = np.where(state == 2, image, np.where(state == 1, merged, _DROPPED * grey))

    border = _cell_borders(rows)[:, None] | _cell_borders(columns)[None, :]
    outline = border & (state[..., 0] == 2)
    line = np.where(slot >= 0, 1, 0)[:, None] * tint
    line[kept & (slot < 0)] = 255
    out[outline] = 0.35 * out[outline] + 0.65 * line[cell][outline]
    image = np.clip(out, 0, 255).astype(np.uint8)
    marked = decision.sink is not None or (decision.flow[t * n : (t + 1) * n] >= 0).any()
    return _draw_marks(image, decision, t) if marked else image


def _draw_marks(image: np.ndarray, decision: Decision, t: int) -> np.ndarray:
    """Lines of the flows and rings of the sinks, on a layer of higher resolution."""
    from PIL import Image, ImageDraw

    h, w = decision.grid
    height, width, _ = image.shape
    side = _SHARPER * min(height / h, width / w)
    layer = Image.new("RGBA", (_SHARPER * width, _SHARPER * height), (255, 255, 255, 0))
    pen = ImageDraw.Draw(layer)

    def centre(token: int) -> tuple[float, float]:
        row, column = divmod(token % decision.tokens_per_frame, w)
        return _SHARPER * (column + 0.5) * width / w, _SHARPER * (row + 0.5) * height / h

    def disc(at: tuple[float, float], radius: float, **how: Any) -> None:
        pen.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), **how)

    n = decision.tokens_per_frame
    flows = decision.flow[t * n : (t + 1) * n], decision.share[t * n : (t + 1) * n]
    # Weak flows first, so that strong ones lie on top.
    tokens, places = np.nonzero(flows[0] >= 0)
    for i in np.argsort(flows[1][tokens, places], kind="stable"):
        target, share = int(flows[0][tokens[i], places[i]]), float(flows[1][tokens[i], places[i]])
        inside = target // n == t
        if inside and share < _FAINT:
            continue
        start, end = centre(int(tokens[i])), centre(target)
        if start != end:
            # Whole frames flow into their own anchors, few tokens into those of another frame.
            weight = 0.4 * share if inside else share
            thick = max(1, round(side * (0.02 + 0.11 * weight)))
            pen.line((*start, *end), fill=(*_FLOW_COLOURS[inside], round(40 + 200 * weight)), width=thick)
    across = decision.flow[t * n : (t + 1) * n] // n != t
    for token in np.unique(tokens[across[tokens, places]]):
        disc(centre(int(token)), 0.09 * side, fill=(255, 255, 255, 230))
    if decision.sink is not None:
        for token in np.flatnonzero(decision.sink[t * n : (t + 1) * n] > 0.5):
            disc(centre(int(token)), 0.36 * side, outline=(255, 59, 59, 255), width=max(1, round(0.1 * side)))
    layer = layer.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(Image.alpha_composite(Image.fromarray(image).convert("RGBA"), layer).convert("RGB"))


def _cell_borders(cells: np.ndarray) -> np.ndarray:
    """True on the first and last pixel of every cell along one axis."""
    change = cells[1:] != cells[:-1]
    return np.append(change, True) | np.append(True, change)


def contact_sheet(
    frames: np.ndarray, decisions: Sequence[Decision], labels: Sequence[str], *, width: int = 300, columns: int = 8
) -> np.ndarray:
    """All frames under a title, one block of rows a method.

    Args:
      frames: (T, H, W, 3) uint8.
      decisions: one or more methods on the same frames.
      labels: caption of each frame, e.g. its time.
      width: pixels of one frame.
      columns: frames in a row.

    Returns:
      (H', W', 3) uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    small = [fit(frame, width) for frame in frames]
    height, gap, caption, title = small[0].shape[0], 8, 22, 76
    columns = min(columns, len(small))
    lines = -(-len(small) // columns)
    block = title + lines * (height + caption + gap)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(decisions) * block + gap), (250, 250, 250))
    pen = ImageDraw.Draw(sheet)
    big, plain, small_print = (ImageFont.load_default(size) for size in (22, 14, 12))
    for number, decision in enumerate(decisions):
        top = number * block + gap
        pen.text((gap, top), f"{decision.method} at {decision.ratio:.0%}", fill=(20, 20, 20), font=big)
        pen.text((gap, top + 30), decision.summary(), fill=(90, 90, 90), font=plain)
        pen.text((gap, top + 50), legend(decision), fill=(140, 140, 140), font=small_print)
        per_frame = decision.per_frame()
        for t, frame in enumerate(small):
            x = gap + (t % columns) * (width + gap)
            y = top + title + (t // columns) * (height + caption + gap)
            sheet.paste(Image.fromarray(draw_frame(frame, decision, t)), (x, y))
            pen.text((x, y + height + 3), f"{labels[t]} · {per_frame[t]} tokens", fill=(90, 90, 90), font=plain)
    return np.asarray(sheet)


def film(frames: np.ndarray, decisions: Sequence[Decision], *, width: int = 480) -> Iterator[np.ndarray]:
    """Frames of a film with the methods side by side, even sizes for the encoder."""
    for t, frame in enumerate(frames):
        small = fit(frame, width)
        small = small[: small.shape[0] // 2 * 2, : small.shape[1] // 2 * 2]
        yield np.concatenate([draw_frame(small, decision, t) for decision in decisions], axis=1)


def write_picture(
    out: Path,
    frames: np.ndarray,
    decisions: Sequence[Decision],
    labels: Sequence[str],
    save_film: Callable[[Path, np.ndarray], None],
) -> None:
    """Writes a contact sheet (.png) or a film (.mp4) to a temporary name; the caller renames it into place."""
    if out.suffix.lower() == ".mp4":
        save_film(out, np.stack(list(film(frames, decisions))))
        return
    from PIL import Image

    Image.fromarray(contact_sheet(frames, decisions, labels)).save(out, format="PNG")
