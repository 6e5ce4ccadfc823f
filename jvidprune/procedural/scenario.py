"""Staging: a clip from its focus, the category it is made for.

A template of the focus decides what has to happen (k circles, a flash in a given second, a change of colour).
Everything else is drawn so that no answer is likelier than another: colours and shapes from permutations, places and
directions from a square without preferred sides.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int64

from jvidprune.procedural.drawing import BACKDROPS, DIRECTIONS, GREY, STILL
from jvidprune.procedural.stories import CASTS
from jvidprune.procedural.world import COLOURS, SHAPES, Knobs, Scene, Thing

_SKIES = ((206, 210, 214), (214, 206, 194), (150, 154, 162), (104, 108, 116), (58, 60, 70), (188, 198, 186))
# Shapes that no question asks about.
_CLUTTER = ("diamond", "star")
# Layouts drawn at once for a number of objects, of which the first good one is taken.
_LAYOUTS = (1, 1, 12, 24, 48, 96, 128)
# Times that layouts are drawn before the best is taken though it is not good.
_TRIES = 4
# Share of objects that move, and of those where objects are counted: many that move cannot keep apart.
_MOVING, _MOVING_COUNTED = 0.5, 0.25


def stage(rng: np.random.Generator, knobs: Knobs, focus: str, template: str) -> Scene:
    """Decides what happens in a clip made for a template of its focus."""
    cuts = _cuts(rng, knobs, template)
    cast, flash = _cast(rng, knobs, template, cuts)
    reach = round(knobs.camera * knobs.side / 84)
    camera = _camera(rng, knobs.frames, reach)
    things = _place(rng, knobs, cast, template, int(np.abs(camera).max()), camera)
    scale, shots = knobs.side / 84, len(cuts) + 1
    clutter = []
    for x, y in rng.uniform(3, knobs.side - 3, (knobs.clutter, 2)):
        shape, radius = _CLUTTER[rng.integers(len(_CLUTTER))], float(rng.uniform(3, 5) * scale)
        way = np.array([x, y]) - camera
        clutter.append(Thing(GREY, shape, "clutter", 0, knobs.frames, radius=radius, centre=way))
    skies = tuple(_SKIES[i] for i in rng.permutation(len(_SKIES))[:shots].tolist())
    backdrops = tuple((BACKDROPS[i % len(BACKDROPS)], i) for i in rng.integers(96, size=shots).tolist())
    posts = _posts(rng, knobs, things)
    noise = int(rng.integers(1 << 30))
    return Scene(knobs, focus, template, (*clutter, *things), cuts, flash, camera, skies, backdrops, posts, noise)


# Stories that cuts would spoil: what appears, vanishes or is counted has to be told from what a cut replaces.
_UNCUT = frozenset({"count_shape", "count_colour", "first", "last", "appear_second", "appear_quarter"}) | frozenset(
    {"changed", "now", "before", "did_change", "vanished", "relation", "is_relation", *CASTS}
)
# Roles of what is small or read: nothing touches it, and it stays where it is.
_ALONE = ("tiny", "small", "glyph")


def _cuts(rng: np.random.Generator, knobs: Knobs, template: str) -> tuple[int, ...]:
    # A shot lasts four frames at least, so that its objects can be seen to move.
    most = min(knobs.cuts, knobs.frames // 4 - 1)
    if template in _UNCUT or most < 1:
        return ()
    count = int(rng.integers(most + 1))
    slack = knobs.frames - 4 * (count + 1)
    starts = np.sort(rng.integers(slack + 1, size=count))
    return tuple((starts + 4 * np.arange(1, count + 1)).tolist())


def _cast(
    rng: np.random.Generator, knobs: Knobs, template: str, cuts: tuple[int, ...]
) -> tuple[list[Thing], int | None]:
    """Objects without places yet, and the frame of a flash."""
    frames = knobs.frames
    colours = [tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS)).tolist()]
    shapes = [tuple(SHAPES)[i] for i in rng.permutation(len(SHAPES)).tolist()]
    if template in CASTS:
        return CASTS[template](rng, frames, colours, shapes), None
    if template == "tiny_colour" or template == "tiny_where":
        shapes.remove("circle")
    if template in ("count_shape", "count_colour"):
        many = int(rng.integers(1, knobs.counted + 1))
        more = int(rng.integers(0, 2)) + (many < 3)
        if template == "count_shape":
            kinds = [(colours[i], shapes[0]) for i in range(many)]
            kinds += [(colours[many + i], shapes[1 + i]) for i in range(more)]
        else:
            kinds = [(colours[0], shapes[i]) for i in range(many)]
            kinds += [(colours[1 + i], shapes[-1 - i]) for i in range(more)]
        return [_thing(rng, kind, 0, frames, _MOVING_COUNTED) for kind in kinds], None
    edges, things = (0, *cuts, frames), []
    special = template in ("needle_colour", "needle_shape", "tiny_colour", "tiny_where")
    shots = len(edges) - 1
    total = (
        min(int(rng.integers(2, knobs.objects + 1)) + (shots > 1), 4)
        if special
        else int(rng.integers(2, knobs.objects + 1)) + (shots > 1)
    )
    total = min(max(total, shots), len(colours) - 2)
    # Now and then two objects share a shape: then only both words together tell them apart.
    kinds = [(colours[i], shapes[i % len(shapes)]) for i in range(total)]
    if total > 2 and rng.random() < 0.25 and template not in ("changed", "now", "before", "did_change"):
        kinds[-1] = (colours[total - 1], kinds[-2][1])
    for i, kind in enumerate(kinds):
        things.append(_thing(rng, kind, edges[i % shots], edges[i % shots + 1]))
    flash = None
    if template.startswith("flash"):
        flash = moment(rng, template, frames)
    elif template == "was_flash":
        flash = int(rng.integers(frames)) if rng.random() < 0.5 else None
    elif template.startswith("appear"):
        things[0] = dataclasses.replace(things[0], start=moment(rng, template, frames))
    elif template in ("first", "last"):
        starts = _apart(rng, 1, frames - 2, 2, 2)
        things[:2] = [dataclasses.replace(thing, start=start) for thing, start in zip(things, starts, strict=False)]
    elif template == "vanished":
        things[0] = dataclasses.replace(things[0], stop=int(rng.integers(max(2, frames // 4), frames - 1)))
    elif template in ("changed", "now", "before", "did_change"):
        when = int(rng.integers(2, frames - 1))
        things[0] = dataclasses.replace(things[0], change=when, after=colours[total])
    elif template in ("direction", "mover"):
        things[0] = dataclasses.replace(things[0], direction=_direction(rng))
        if template == "mover":
            things[1:] = [
                dataclasses.replace(thing, direction=STILL) if thing.direction == things[0].direction else thing
                for thing in things[1:]
            ]
    elif template in ("needle_colour", "needle_shape"):
        at = int(rng.integers(frames))
        things.append(Thing(colours[total], shapes[total % len(shapes)], "needle", at, at + 1))
    elif template in ("tiny_colour", "tiny_where"):
        start, stop = _span(rng, frames)
        things.append(Thing(colours[total], "circle", "tiny", start, stop))
    return things, flash


def moment(rng: np.random.Generator, template: str, frames: int) -> int:
    """Frame of an event, uniform over `moments` or, where quarters are asked for, over quarters."""
    allowed = moments(template, frames)
    if not template.endswith("quarter"):
        return allowed[int(rng.integers(len(allowed)))]
    quarter = int(rng.integers(4))
    within = [frame for frame in allowed if frame * 4 // frames == quarter]
    return within[int(rng.integers(len(within)))]


def moments(template: str, frames: int) -> list[int]:
    """Frames that an event can fall on: nothing appears in the first frame, and what appears stays two frames."""
    return list(range(1, frames - 1)) if template.startswith("appear") else list(range(frames))


def _apart(rng: np.random.Generator, low: int, high: int, count: int, gap: int) -> list[int]:
    """Frames of low..high in random order, at least `gap` apart."""
    slack = high - low - gap * (count - 1)
    spots = np.sort(rng.integers(slack + 1, size=count)) + gap * np.arange(count) + low
    return rng.permutation(spots).tolist()


def _span(rng: np.random.Generator, frames: int) -> tuple[int, int]:
    length = int(rng.integers(min(3, frames), frames + 1))
    start = int(rng.integers(frames - length + 1))
    return start, start + length


def _direction(rng: np.random.Generator) -> str:
    return tuple(DIRECTIONS)[int(rng.integers(len(DIRECTIONS)))]


def _thing(rng: np.random.Generator, kind: tuple[str, str], start: int, stop: int, moving: float = _MOVING) -> Thing:
    return Thing(*kind, "main", start, stop, _direction(rng) if rng.random() < moving else STILL)


def _camera(rng: np.random.Generator, frames: int, reach: int) -> Int64[np.ndarray, "frames 2"]:
    """A slow pan, a shake or neither."""
    style = int(rng.integers(3))
    if reach == 0 or style == 0:
        return np.zeros((frames, 2), np.int64)
    if style == 1:
        return rng.integers(-1, 2, (frames, 2))
    turn = rng.uniform(0, 2 * np.pi)
    way = np.linspace(-0.5, 0.5, frames)[:, None] * reach * np.array([np.cos(turn), np.sin(turn)])
    return np.rint(way).astype(np.int64)


def _posts(rng: np.random.Generator, knobs: Knobs, things: list[Thing]) -> tuple[tuple[int, int], ...]:
    """Posts in three of ten clips, where none hides an object for more than a third of its time."""
    if not knobs.posts or rng.random() > 0.3:
        return ()
    width = round(6 * knobs.side / 84)
    spots = rng.integers(width, knobs.side - 2 * width, 8)
    shadow = np.zeros(len(spots), bool)
    for thing in things:
        off = np.abs(thing.centre[thing.start : thing.stop, 0] - (spots[:, None] + width / 2))
        behind = (off < 0.5 * width + 0.6 * thing.radius).mean(1)
        shadow |= behind > (1 / 3 if thing.role == "main" and thing.stop - thing.start > 2 else 0)
    chosen = spots[~shadow][: int(rng.integers(1, knobs.posts + 1))]
    return tuple((int(x), width) for x in chosen)


def _place(
    rng: np.random.Generator, knobs: Knobs, cast: list[Thing], template: str, slack: int, camera: np.ndarray
) -> list[Thing]:
    """Places and ways for a cast: the first of many random layouts in which everyone can be seen."""
    frames, side, scale, count = knobs.frames, knobs.side, knobs.side / 84, len(cast)
    layouts = _LAYOUTS[min(count, len(_LAYOUTS) - 1)]
    small, big = (7.8, 11.0) if count <= 3 else (7.6, 9.6) if count == 4 else (7.2, 8.6)
    radius = rng.uniform(small, big, count) * scale * knobs.size
    tiny = np.array([thing.role == "tiny" for thing in cast])
    radius = np.where(tiny, rng.uniform(4.2, 4.9) * scale, radius)
    if any(thing.role == "small" for thing in cast):
        radius = np.where([thing.role == "small" for thing in cast], rng.uniform(4.0, 4.8, count) * scale, radius)
    radius *= [SHAPES.get(thing.shape, 1.0) for thing in cast]
    start, stop = np.array([(thing.start, thing.stop) for thing in cast]).T
    # What is in view for less than four frames has no time to move.
    apart = np.array([thing.role in _ALONE for thing in cast])
    still = (stop - start < 4) | apart
    direction = [STILL if halt else thing.direction for thing, halt in zip(cast, still, strict=True)]
    way = np.array([DIRECTIONS.get(name, (0, 0)) for name in direction], np.float64)
    turns = np.array([thing.turn is not None for thing in cast])
    # Each half of a way that turns is more than half as long as a whole one, so that both can be seen.
    then = np.array([DIRECTIONS.get(thing.turn or "", (0, 0)) for thing in cast], np.float64)
    progress = (np.arange(frames) - start[:, None]) / np.maximum(stop - start - 1, 1)[:, None] - 0.5
    best, layout = np.inf, np.zeros((count, frames, 2))
    for _ in range(_TRIES):
        length = rng.uniform(20, 34, (layouts, count, 1)) * scale * np.where(turns[:, None], 1.2, np.abs(way))
        low = radius[:, None] + 1 + slack + length / 2
        middle = low + rng.random((layouts, count, 2)) * (side - 2 * low)
        # A tiny dot keeps off the middle lines: it lies in one quarter of the image.
        corner = rng.choice([-1.0, 1.0], (layouts, count, 2)) * rng.uniform(0.13, 0.42, (layouts, count, 2)) * side
        middle = np.where(tiny[:, None], side / 2 + corner, middle)
        along = (way * length)[:, :, None] * np.where(turns[:, None], np.minimum(progress, 0), progress)[:, :, None]
        path = middle[:, :, None] + along
        if turns.any():
            path += (then * length)[:, :, None] * np.maximum(progress, 0)[:, :, None]
        path = np.where(np.abs(progress[:, :, None]) <= 0.5, path, middle[:, :, None])
        excess = _excess(knobs, path, radius, apart, start, stop, template)
        if excess.min() < best:
            best, layout = excess.min(), path[excess.argmin()]
        if best == 0:
            break
    return [
        dataclasses.replace(thing, direction=direction[i], radius=float(radius[i]), centre=layout[i] - camera)
        for i, thing in enumerate(cast)
    ]


def _excess(
    knobs: Knobs,
    path: Float64[np.ndarray, "layouts things frames 2"],
    radius: Float64[np.ndarray, "things"],
    apart: Bool[np.ndarray, "things"],
    start: np.ndarray,
    stop: np.ndarray,
    template: str,
) -> Float64[np.ndarray, "layouts"]:
    """How far each layout is from one in which everyone can be seen; 0 is good."""
    frames = np.arange(knobs.frames)
    shown = (frames >= start[:, None]) & (frames < stop[:, None])
    gap = path[:, :, None] - path[:, None]
    near = np.sqrt(np.square(gap).sum(-1)) / (radius[:, None] + radius)[:, :, None]
    both = shown[:, None] & shown[None] & ~np.eye(len(radius), dtype=bool)[:, :, None]
    touched = ((near < 1.08) & both).any(2).sum(-1) / shown.sum(-1)
    hidden = ((near < 0.5) & both).any(2).sum(-1) / shown.sum(-1)
    # What is small or read, in view for a moment or counted is not touched.
    alone = apart | (stop - start < 3) | template.startswith("count")
    allowed = np.where(alone, 0.0, knobs.crowding)
    excess = np.maximum(touched - allowed, 0).sum(-1) + np.maximum(hidden - allowed / 2, 0).sum(-1)
    if template in ("relation", "is_relation"):
        excess += ~related(gap, both, knobs.side).any((1, 2, 3))
    return excess


def related(
    gap: Float64[np.ndarray, "*layouts things things frames 2"],
    both: Bool[np.ndarray, "things things frames"],
    side: int,
) -> Bool[np.ndarray, "*layouts things things 4"]:
    """Which of left, right, above, below holds between which things, clearly and whenever both are in view.

    Args:
      gap: x and y of the first thing minus those of the second.
      both: frames with both in view.
      side: of the image in pixels; a relation is clear from 0.2 sides on, and where it is 1.6 times as wide as the
        offset across.
    """
    x, y = gap[..., 0], gap[..., 1]
    clear, wide = 0.2 * side, 1.6
    holds = [
        (sign * along > clear) & (sign * along > wide * np.abs(across))
        for along, across in ((x, y), (y, x))
        for sign in (-1, 1)
    ]
    return np.stack([(hold | ~both).all(-1) & both.any(-1) for hold in holds], -1)
