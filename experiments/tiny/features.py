"""What a tower that stays makes of a pool of clips, on disk: the language model's stages read it again and again."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.paint import paint
from jvidprune.procedural.world import Scene
from jvidprune.training.loop import prefetch

CHUNK = 16
"""Clips that are seen between two notes of how far a pool is."""

AHEAD = 2
"""Clips that are being seen at a time, so that two devices have work."""

See = Callable[[np.ndarray], Any]
"""uint8 frames (T, side, side, 3) of a clip to its visual tokens (T, N, D)."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """The first clips of a task from a number on, with what the tower made of them.

    Attributes:
      task: clips.
      first: number of the first clip.
      seen: (clips, T, N, D) visual tokens, in a file.
    """

    task: Procedural
    first: int
    seen: Float16[np.ndarray, "clips T N D"]

    @functools.cached_property
    def scene(self) -> Callable[[int], Scene]:
        """Number within the pool to what happens there; staged once."""
        return functools.lru_cache(maxsize=None)(lambda number: self.task.scene(self.first + number)[0])

    def __len__(self) -> int:
        return len(self.seen)


def pool(
    folder: Path,
    task: Procedural,
    first: int,
    clips: int,
    shape: tuple[int, int, int],
    see: See,
    settings: dict[str, Any],
    report: Callable[[dict[str, float]], None] | None = None,
) -> Pool:
    """Makes a pool, or goes on where an earlier call stopped.

    Args:
      folder: of the file; created if needed.
      task, first, clips: as of `Pool`.
      shape: (T, N, D).
      see: tower, projector and pooling.
      settings: what it was trained by.
      report: called with how many clips are done.

    Raises:
      JvidpruneError: the folder holds a pool of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "pool.json"
    # As a file holds it.
    wanted = json.loads(json.dumps({"task": task.fingerprint(), "first": first, "clips": clips, **settings}))
    found = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {"done": 0, "made": wanted}
    if found["made"] != wanted:
        raise JvidpruneError(f"{folder} holds a pool of other settings: choose another folder or remove it.")
    path = folder / "features.npy"
    done = found["done"] if path.exists() else 0
    values = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, (clips, *shape))
    made = iter(prefetch(lambda number: paint(task.scene(first + number)[0])[0], done, clips))
    ahead: collections.deque[Any] = collections.deque()
    for number in range(done, clips):
        while len(ahead) < AHEAD and (frames := next(made, None)) is not None:
            ahead.append(see(frames))
        values[number] = np.asarray(ahead.popleft())
        if (number + 1) % CHUNK == 0 or number + 1 == clips:
            values.flush()
            with atomic_output(note) as part:
                part.write_text(json.dumps({"done": number + 1, "made": wanted}), encoding="utf-8")
            if report:
                report({"step": number + 1})
    return Pool(task, first, np.load(path, mmap_mode="r"))
