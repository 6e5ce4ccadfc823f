"""A benchmark of video files as a task: questions grouped by clip, missing videos left out and listed."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jvidprune.bench.datasets.videos import VideoIndex, read_clip, wish_of
from jvidprune.bench.items import POST_PROMPTS, Item, Question, chance
from jvidprune.errors import JvidpruneError
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import Rule
from jvidprune.video.wish import FrameWish


@dataclasses.dataclass(frozen=True)
class AskedQuestion(Question):
    """A question with the whole text that the model is given, as the benchmark's evaluation words it.

    Attributes:
      asked: prompt, options and instructions included.
    """

    asked: str = ""

    def prompt(self, post: Mapping[str, str] = POST_PROMPTS) -> str:
        """The benchmark's own text; `post` is ignored."""
        return self.asked


@dataclasses.dataclass(frozen=True)
class Entry:
    """One annotated question.

    Attributes:
      videos: names under which its video may lie, the likeliest first.
      question: what is asked.
      start, end: seconds of the part that is looked at.

    Raises:
      ValueError: seconds that are no part of a video, or texts that are none.
    """

    videos: tuple[str, ...]
    question: AskedQuestion
    start: float | None = None
    end: float | None = None

    def __post_init__(self):
        times = [time for time in (self.start, self.end) if time is not None]
        if not all(0 <= time < 1e9 for time in times) or sorted(times) != times:
            raise ValueError(f"{self.question.id} looks at {self.start} to {self.end} seconds, which is no part")
        if not all(isinstance(name, str) for name in (*self.videos, self.question.text, *self.question.options)):
            raise ValueError(f"{self.question.id} has a video, a text or an option that is no text")


class VideoTask:
    """Entries of a benchmark whose videos are there."""

    def __init__(
        self,
        name: str,
        entries: Iterable[Entry],
        folder: Path,
        *,
        frames: int | None = None,
        fps: float | None = None,
        rule: Rule | None = None,
        wish: FrameWish | None = None,
        clips: int | None = None,
        extraction: str = "letters",
        limits: Limits = DEFAULT,
    ):
        """Looks for the videos.

        Args:
          name: of the benchmark.
          entries: in the order of the annotations.
          folder: the local copy; videos are searched below it.
          frames, fps, rule, wish: frames that are read of each, see `read_clip`.
          clips: only the first so many of those that are there.
          extraction: rule of `bench.extract.RULES` for choice letters.
          limits: what is accepted of a video; it changes no result, and is no part of the fingerprint.

        Raises:
          JvidpruneError: no entry has its video.
        """
        index = VideoIndex(folder)
        groups: dict[tuple[Path, float | None, float | None], list[AskedQuestion]] = {}
        missing: dict[str, None] = {}
        for entry in entries:
            path = index.find(entry.videos)
            if path is None:
                missing[entry.videos[0]] = None
            else:
                groups.setdefault((path, entry.start, entry.end), []).append(entry.question)
        if not groups:
            raise JvidpruneError(f"none of the {len(missing)} videos of {name} lies below {folder}.")
        self.name = name
        self.missing = tuple(missing)
        """Names of the videos that are not there."""
        self.extraction = extraction
        self._folder = folder
        self._groups = list(groups.items())[:clips]
        self._limits = limits
        self._wish = wish_of(wish, frames, fps, rule)

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of the questions, in the order they occur."""
        return tuple(dict.fromkeys(q.category for _, questions in self._groups for q in questions))

    def chance(self, question: Question) -> float:
        """Accuracy of a uniform guess among the options, 0 where answers are open."""
        return chance(question)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Item:
        (path, start, end), questions = self._groups[index]
        mark = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else f'{end:g}'}"
        name = path.relative_to(self._folder).as_posix() + mark
        part: dict[str, Any] = {"start": start, "end": end, "limits": self._limits}
        return Item(name, tuple(questions), lambda: read_clip(path, wish=self._wish, **part))

    def fingerprint(self) -> dict[str, Any]:
        """Frames that are read, the letter rule, and a hash of every question and the size of every video."""
        digest = hashlib.sha256()
        for (path, start, end), questions in self._groups:
            size = path.stat().st_size if path.is_file() else 0
            digest.update(repr((path.relative_to(self._folder).as_posix(), size, start, end)).encode())
            for question in questions:
                digest.update(repr(dataclasses.astuple(question)).encode())
        wish = dataclasses.asdict(self._wish)
        return wish | {"extraction": self.extraction, "clips": len(self), "questions": digest.hexdigest()[:16]}
