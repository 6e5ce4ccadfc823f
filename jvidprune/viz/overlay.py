"""Decisions drawn on frames: kept tokens in colour, merged ones in the tint of their row, dropped ones dark."""

import colorsys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jvidprune.viz.decision import Decision

_DROPPED = 0.28
_MERGED_TINT = 0.45
_LEGEND = "(outlined: kept · tinted: merged into the token outlined in that colour · dark: dropped)"


def row_colours(decision: Decision) -> np.ndarray:
    """(R, 3) uint8: one hue per output row that merged several tokens, white for the others.

    Consecutive rows get hues a golden angle apart, so neighbours differ.
    """
    colours = np.full((decision.count, 3), 255, np.uint8)
    for row in np.flatnonzero(decision.mass > 1):
        rgb = colorsys.hsv_to_rgb((row * 0.61803398875) % 1.0, 0.75, 1.0)
        colours[row] = [round(255 * c) for c in rgb]
    return colours


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
    if decision.sink is not None:
        ring = decision.sink[t * n : (t + 1) * n] > 0.5
        out[border & ring[cell]] = (255, 60, 60)
    return np.clip(out, 0, 255).astype(np.uint8)


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
    height, gap, caption, title = small[0].shape[0], 8, 22, 56
    columns = min(columns, len(small))
    lines = -(-len(small) // columns)
    block = title + lines * (height + caption + gap)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(decisions) * block + gap), (250, 250, 250))
    pen = ImageDraw.Draw(sheet)
    big, plain = ImageFont.load_default(22), ImageFont.load_default(14)
    for number, decision in enumerate(decisions):
        top = number * block + gap
        pen.text((gap, top), f"{decision.method} at {decision.ratio:.0%}", fill=(20, 20, 20), font=big)
        pen.text((gap, top + 30), f"{decision.summary()}    {_LEGEND}", fill=(90, 90, 90), font=plain)
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
