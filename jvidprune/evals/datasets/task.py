"""A benchmark of video files as a task: questions grouped by clip; what cannot be asked is left out and listed."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.videos import VideoIndex, read_clip, wish_of
from jvidprune.evals.items import Item, LeftOut, Question, chance
from jvidprune.files import content_mark
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import Rule
from jvidprune.video.wish import FrameWish

_Place = tuple[Path, float | None, float | None]
"""Video, and the seconds of the part that is looked at."""


class VideoTask:
    """Entries of a benchmark whose videos are there."""

    def __init__(
        self,
        name: str,
        entries: Iterable[Entry | LeftOut],
        folder: Path,
        *,
        frames: int | None = None,
        fps: float | None = None,
        rule: Rule | None = None,
        wish: FrameWish | None = None,
        clips: int | None = None,
        extraction: str = "letters",
        prompts: str = "",
        limits: Limits = DEFAULT,
        unique: bool = False,
        strict: bool = False,
    ):
        """Looks for the videos.

        Args:
          name: of the benchmark.
          entries: in the order of the annotations, and those annotations that are none.
          folder: the local copy; videos are searched below it.
          frames, fps, rule, wish: frames that are read of each, see `read_clip`.
          clips: only the first so many of those that are there.
          extraction: rule of `evals.extract.RULES` for choice letters.
          prompts: whose wording the questions have, `registry.Prompts`.
          limits: what is accepted of a video; it changes no result, and is no part of the fingerprint.
          unique: ids of questions are unique in the task, else in their clip.
          strict: refuse the first entry that cannot be asked instead of leaving it out.

        Raises:
          JvidpruneError: nothing can be asked, or `strict` and something cannot.
        """
        self.name = name
        self.folder = str(folder.resolve())
        """The local copy."""
        self.extraction = extraction
        self.prompts = prompts
        self._folder = folder
        self._limits = limits
        self._wish = wish_of(wish, frames, fps, rule)
        groups: dict[_Place, list[AskedQuestion]] = {}
        bad: dict[LeftOut, None] = {}
        index, seen, missing = VideoIndex(folder), set(), {}
        for entry in entries:
            if isinstance(entry, Entry):
                path = index.find(entry.videos)
                place = None if path is None else (path, entry.start, entry.end)
                key = (entry.question.id, None if unique else place or entry.videos)
                if key in seen:
                    why = f"the question id {quoted(entry.question.id)} is there twice; the first is asked."
                    problem = LeftOut(entry.question.id, str(path or folder / entry.videos[0]), why)
                elif place is None:
                    missing[entry.videos[0]] = None
                    why = f"the video {quoted(entry.videos[0], 200)} is missing: {folder} holds no such file."
                    problem = LeftOut(entry.videos[0], _joined(folder, entry.videos[0]), why, missing=True)
                else:
                    problem = None
                    groups.setdefault(place, []).append(entry.question)
                seen.add(key)
            else:
                problem = entry
            if problem is not None:
                if strict:
                    raise JvidpruneError(str(problem))
                bad[problem] = None
        self.left_out = tuple(bad)
        """What cannot be asked: videos that are not there, each once, and annotations that are wrong."""
        self.missing = tuple(missing)
        """Names of the videos that are not there."""
        if not groups:
            raise JvidpruneError(self._nothing())
        self._groups = list(groups.items())[:clips]

    def _nothing(self) -> str:
        """Why there is nothing to ask."""
        if not self.left_out:
            return f"the annotations of {self.name} in {self._folder} hold no question that can be asked."
        if len(self.missing) == len(self.left_out):
            return f"none of the {len(self.missing)} videos of {self.name} lies below {self._folder}."
        first = next(bad for bad in self.left_out if not bad.missing)
        others = len(self.left_out) - 1
        more = f" ({others} more {'is' if others == 1 else 'are'} left out, too)" if others else ""
        return f"nothing of {self.name} can be asked{more}: {first}"

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
        return Item(
            name,
            tuple(questions),
            lambda: read_clip(path, wish=self._wish, start=start, end=end, limits=self._limits),
            lambda: {"video": content_mark(path)} | dataclasses.asdict(self._wish) | {"start": start, "end": end},
            str(path),
        )

    def fingerprint(self) -> dict[str, Any]:
        """Frames that are read, the wording and how answers are read: what holds for every clip."""
        return dataclasses.asdict(self._wish) | {"extraction": self.extraction, "prompts": self.prompts}


def _joined(folder: Path, name: str) -> str:
    """Where a video is expected, as text: no file system takes every name."""
    return f"{folder}/{name}"
