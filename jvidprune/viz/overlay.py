"""Decisions drawn on frames that stay visible: kept tokens as they are and outlined, merged pale, dropped dark."""

import colorsys
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jvidprune.viz.decision import Decision

COLOUR_LEFT = 0.4
"""Share of the colour that is left to tokens that are not kept."""

FOG, TINT = 0.4, 0.15
"""How far merged tokens fade to white, and how far from there to the colour of their row."""

SHADE = 0.5
"""Brightness of dropped tokens."""

LEGEND = (
    ("kept", "outlined: kept"),
    ("merged", "pale: merged into the token outlined in that colour"),
    ("dropped", "dark: dropped"),
)
"""What is drawn for each fate of a token, and its words; the same in pages, pictures and films."""

INSIDE = (
    ("kept", "outlined: in these layers"),
    ("restored", "green outline: back again"),
    ("merged", "pale: travels as part of the token outlined in that colour"),
    ("passed", "pale: passes the layer by"),
    ("dropped", "dark: not in these layers"),
)
"""The same for stages inside the language model, as far as they have it."""

RESTORED = (46, 190, 96)
"""Outlines of tokens that are back again."""

LINES = "line with a dot: went to that place of an earlier frame"
SINKS = "red ring: sink"
_EDGE = (24, 24, 28)
"""Around outlines, which are so seen on light and dark frames."""
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


def remarks(decisions: Sequence[Decision]) -> list[str]:
    """What lines and rings mean, as far as these decisions have any."""
    across = any((_across(decision) >= 0).any() for decision in decisions)
    return [LINES] * across + [SINKS] * any(decision.sink is not None for decision in decisions)


def legend_of(decisions: Sequence[Decision]) -> tuple[tuple[str, str], ...]:
    """The legend of some decisions: of stages inside the language model, what these have."""
    stages = [decision for decision in decisions if decision.stage is not None]
    if not stages:
        return LEGEND
    fates = [decision.fates() for decision in stages]
    there = {
        "kept": True,
        "restored": any(one.restored is not None and one.restored.any() for one in stages),
        "merged": any(fate["merged"] for fate in fates),
        "passed": any(one.stage == "routed" for one in stages),
        "dropped": any(f["dropped"] and one.stage != "routed" for f, one in zip(fates, stages, strict=True)),
    }
    return tuple((kind, words) for kind, words in INSIDE if there[kind])


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
    hue = np.full((n, 3), 255, np.float32)
    hue[slot >= 0] = row_colours(decision)[slot[slot >= 0]]
    if decision.restored is not None:
        hue[decision.restored[t * n : (t + 1) * n]] = RESTORED

    image = frame.astype(np.float32)
    grey = image.mean(-1, keepdims=True)
    soft = grey + COLOUR_LEFT * (image - grey)
    pale = soft + FOG * (255 - soft)
    pale += TINT * (hue[cell] - pale)
    faded = (slot >= 0) | (decision.stage == "routed")
    fate = np.where(kept, 2, np.where(faded, 1, 0))[cell][..., None]
    out = np.where(fate == 2, image, np.where(fate == 1, pale, SHADE * soft))

    thick = max(1, round(min(height / h, width / w) / 22))
    edge = kept[cell] & _border(rows, columns, 1)
    inner = kept[cell] & _border(rows, columns, 1 + thick) & ~edge
    out[edge], out[inner] = _EDGE, hue[cell][inner]
    return _draw_marks(np.clip(out, 0, 255).astype(np.uint8), decision, t)


def _across(decision: Decision) -> np.ndarray:
    """(T * N,) the token of another frame that took most of each token, -1 for none; not of tokens that are kept."""
    token = np.arange(len(decision.flow))
    target = decision.flow[token, np.argmax(decision.share, axis=1)]
    n = decision.tokens_per_frame
    return np.where((target >= 0) & (target // n != token // n) & ~decision.kept().reshape(-1), target, -1)


def _draw_marks(image: np.ndarray, decision: Decision, t: int) -> np.ndarray:
    """Lines to earlier frames and rings of the sinks, on a layer of higher resolution.

    Where tokens went inside their frame is said by their tint: lines would hide the frame.
    """
    from PIL import Image, ImageDraw

    h, w = decision.grid
    n = decision.tokens_per_frame
    across = _across(decision)[t * n : (t + 1) * n]
    sinks = np.zeros(n, bool) if decision.sink is None else decision.sink[t * n : (t + 1) * n] > 0.5
    if not (sinks.any() or (across >= 0).any()):
        return image
    height, width, _ = image.shape
    side = _SHARPER * min(height / h, width / w)
    layer = Image.new("RGBA", (_SHARPER * width, _SHARPER * height), (255, 255, 255, 0))
    pen = ImageDraw.Draw(layer)

    def centre(token: int) -> tuple[float, float]:
        row, column = divmod(token % n, w)
        return _SHARPER * (column + 0.5) * width / w, _SHARPER * (row + 0.5) * height / h

    def box(at: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
        return at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius

    for token in np.flatnonzero(across >= 0):
        start, end = centre(int(token)), centre(int(across[token]))
        if start != end:
            pen.line((*start, *end), fill=(*_EDGE, 150), width=max(1, round(0.05 * side)))
        pen.ellipse(box(start, 0.07 * side), fill=(*_EDGE, 190))
    for token in np.flatnonzero(sinks):
        pen.ellipse(box(centre(int(token)), 0.36 * side), outline=(255, 59, 59, 255), width=max(1, round(0.1 * side)))
    layer = layer.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(Image.alpha_composite(Image.fromarray(image).convert("RGBA"), layer).convert("RGB"))


def _border(rows: np.ndarray, columns: np.ndarray, thick: int) -> np.ndarray:
    """(H, W) True within `thick` pixels of the edges of each cell."""

    def near(cells: np.ndarray) -> np.ndarray:
        change = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
        place = np.arange(len(cells))
        begin = change[np.searchsorted(change, place, side="right") - 1]
        end = np.append(change, len(cells))[np.searchsorted(change, place, side="right")]
        return (place - begin < thick) | (end - place <= thick)

    return near(rows)[:, None] | near(columns)[None, :]


def contact_sheet(
    frames: np.ndarray,
    decisions: Sequence[Decision],
    labels: Sequence[str],
    *,
    width: int = 300,
    columns: int = 8,
    only: Sequence[int] | None = None,
) -> np.ndarray:
    """Frames under a legend and titles, one block of rows a method.

    Args:
      frames: (T, H, W, 3) uint8.
      decisions: one or more methods on the same frames.
      labels: caption of each frame, e.g. its time.
      width: pixels of one frame.
      columns: frames in a row.
      only: numbers of the frames to show; None for all.

    Returns:
      (H', W', 3) uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = range(len(frames)) if only is None else only
    small = [fit(frames[t], width) for t in shown]
    height, gap, caption, title = small[0].shape[0], 8, 24, 60
    columns = min(columns, len(small))
    lines = -(-len(small) // columns)
    block = title + lines * (height + caption + gap)
    across = columns * (width + gap) + gap
    key = legend_strip(across, remarks(decisions), legend_of(decisions))
    sheet = Image.new("RGB", (across, key.shape[0] + len(decisions) * block + gap), (250, 250, 250))
    sheet.paste(Image.fromarray(key), (0, 0))
    pen = ImageDraw.Draw(sheet)
    big, plain = (ImageFont.load_default(size) for size in (22, 15))
    for number, decision in enumerate(decisions):
        top = number * block + gap + key.shape[0]
        named = decision.method if decision.stage else f"{decision.method} at {decision.ratio:.0%}"
        pen.text((gap, top), named, fill=(20, 20, 20), font=big)
        pen.text((gap, top + 30), decision.summary(), fill=(90, 90, 90), font=plain)
        per_frame = decision.per_frame()
        for place, (t, frame) in enumerate(zip(shown, small, strict=True)):
            x = gap + (place % columns) * (width + gap)
            y = top + title + (place // columns) * (height + caption + gap)
            sheet.paste(Image.fromarray(draw_frame(frame, decision, t)), (x, y))
            pen.text((x, y + height + 3), f"{labels[t]} · {per_frame[t]} tokens", fill=(90, 90, 90), font=plain)
    return np.asarray(sheet)


def legend_strip(width: int, more: Sequence[str] = (), legend: Sequence[tuple[str, str]] = LEGEND) -> np.ndarray:
    """(H, width, 3) uint8: a patch and its words for each fate of a token, then remarks; in as many lines as fit.

    Args:
      width: in pixels.
      more: remarks without a patch.
      legend: kinds and words.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, gap, patch, line = ImageFont.load_default(15), 8, 18, 28
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x, y, placed = gap, gap, []
    for kind, text in (*legend, *(("", text) for text in more)):
        needs = (patch + 7) * bool(kind) + measure.textlength(text, font) + 22
        if x > gap and x + needs > width:
            x, y = gap, y + line
        placed.append((x, y, kind, text))
        x += round(needs)
    strip = Image.new("RGB", (width, y + line), (250, 250, 250))
    pen = ImageDraw.Draw(strip)
    # A colour as kept tokens have it, and what becomes of the same colour.
    for x, y, kind, text in placed:
        if kind:
            strip.paste(Image.fromarray(_patch(kind, patch)), (round(x), y))
        pen.text((x + (patch + 7) * bool(kind), y), text, fill=(70, 70, 70), font=font)
    return np.asarray(strip)


def _patch(kind: str, side: int) -> np.ndarray:
    """A token of a fate, as `draw_frame` draws it."""
    index = np.array({"kept": [0], "restored": [0], "merged": [1]}.get(kind, []), np.int64)
    slot = np.array([0 if len(index) else -1, -1])
    nothing = np.full((2, 1), -1)
    one = Decision("", 1.0, 2, (1, 1), index, np.full(len(index), 2), slot, nothing, np.zeros((2, 1)))
    if kind in ("restored", "passed"):
        stage = "routed" if kind == "passed" else "layers"
        one = dataclasses.replace(one, stage=stage, restored=np.array([kind == "restored", False]))
    return draw_frame(np.full((side, side, 3), (96, 132, 170), np.uint8), one, 0)


def film(frames: np.ndarray, decisions: Sequence[Decision], *, width: int = 480) -> Iterator[np.ndarray]:
    """Frames of a film with the methods side by side under their names, a legend below; even sizes for the encoder."""
    from PIL import Image, ImageDraw, ImageFont

    gap = 6
    across = len(decisions) * (width + gap) - gap
    names = Image.new("RGB", (across, 34), (250, 250, 250))
    pen = ImageDraw.Draw(names)
    for number, decision in enumerate(decisions):
        text = f"{decision.method} · {decision.count:,} tokens ({decision.achieved:.1%})"
        pen.text((number * (width + gap) + 8, 7), text, fill=(20, 20, 20), font=ImageFont.load_default(17))
    key = legend_strip(across, remarks(decisions), legend_of(decisions))
    for t, frame in enumerate(frames):
        small = fit(frame, width)
        drawn = np.full((small.shape[0], across, 3), 250, np.uint8)
        for number, decision in enumerate(decisions):
            drawn[:, number * (width + gap) :][:, :width] = draw_frame(small, decision, t)
        whole = np.concatenate([np.asarray(names), drawn, key])
        yield whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2]


def write_picture(
    out: Path,
    frames: np.ndarray,
    decisions: Sequence[Decision],
    labels: Sequence[str],
    save_film: Callable[[Path, np.ndarray], None] | None = None,
) -> None:
    """Writes a contact sheet (.png) or a film (.mp4) to a temporary name; the caller renames it into place."""
    if out.suffix.lower() == ".mp4" and save_film is not None:
        save_film(out, np.stack(list(film(frames, decisions))))
        return
    from PIL import Image

    Image.fromarray(contact_sheet(frames, decisions, labels)).save(out, format="PNG")
