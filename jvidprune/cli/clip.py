"""`jvidprune clip`: a generated clip as a file."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from jvidprune.cli.options import OUTPUT, Common, print_json
from jvidprune.errors import JvidpruneError

_MOST_FRAMES = 10_000
"""Of a generated clip, which is made in memory: 3.3 GB."""


def clip(
    path: Annotated[Path, Positional] = Path("clip.mp4"), /, *, seed: int = 0, frames: int = 64, out: Common = OUTPUT
) -> None:
    """Write a generated clip of moving shapes, cuts and camera motion as a real mp4 file.

    Args:
      path: file to write.
      seed: equal seeds give equal clips.
      frames: length in frames.
    """
    record = make_clip(path, seed=seed, frames=frames)
    if out.json:
        print_json(record)
    else:
        print(path)


def make_clip(path: Path, *, seed: int, frames: int) -> dict[str, Any]:
    """Writes a generated clip."""
    from jvidprune.fields import Range, checked
    from jvidprune.files import check_writable
    from jvidprune.procedural.clips import ClipSpec, render, write_mp4

    if path.suffix.lower() != ".mp4":
        raise JvidpruneError(f"cannot write a clip to {path}: the suffix must be .mp4.")
    checked(seed, Annotated[int, Range(0)], "seed")
    checked(frames, Annotated[int, Range(3, _MOST_FRAMES)], "frames")
    check_writable(path)
    made = render(ClipSpec(seed=seed, frames=frames))
    write_mp4(path, made.frames, made.spec.fps)
    return {"path": str(path), "frames": frames, "seed": seed}
