"""`jvidprune bench`: the procedural benchmark as files, and what its questions give away without the clips."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from jvidprune.cli.options import OUTPUT, Common, print_json

if TYPE_CHECKING:
    from jvidprune.cli.console import Console
    from jvidprune.procedural.benchmark import Procedural

# Clips that the text-only baseline is fitted on; only their questions are made.
_FITTED = 8000


@dataclasses.dataclass(frozen=True)
class BenchChoice:
    """Which clips."""

    split: Literal["train", "validation", "test"] = "test"
    """Seeds of different splits never overlap."""
    clips: int = 200
    """Number of clips."""
    frames: int = 8
    """Frames of a clip, one a second."""
    difficulty: float = 0.5
    """0 to 1."""

    def task(
        self, split: Literal["train", "validation", "test"] | None = None, clips: int | None = None
    ) -> "Procedural":
        """The clips, or others of the same kind.

        Raises:
          JvidpruneError: impossible numbers.
        """
        from jvidprune.fields import Range, checked
        from jvidprune.procedural.benchmark import Procedural

        checked(self.clips, Annotated[int, Range(1, 1_000_000)], "clips")
        return Procedural(split or self.split, clips or self.clips, frames=self.frames, difficulty=self.difficulty)


CHOICE = BenchChoice()


def bench(
    action: Annotated[Literal["export", "baselines"], Positional],
    folder: Annotated[Path, Positional] = Path("benchmark"),
    /,
    *,
    choice: Annotated[BenchChoice, OmitArgPrefixes] = CHOICE,
    out: Common = OUTPUT,
) -> None:
    """The procedural benchmark as mp4 files with annotations, or what its questions give away without their clips.

    Args:
      action: "export" writes files; "baselines" measures chance and text-only guessing on the split.
      folder: where to export to.
    """
    if action == "baselines":
        record, text = baselines(choice)
    else:
        record = export(folder, choice, console=out.console())
        text = record["path"]
    if out.json:
        print_json(record)
    else:
        print(text)


def export(folder: Path, choice: BenchChoice, *, console: "Console") -> dict[str, Any]:
    """Writes clips and annotations."""
    from jvidprune.files import check_folder
    from jvidprune.procedural.export import export as write

    task = choice.task()
    check_folder(folder)
    with console.working():
        path = write(task, folder, progress=console.task("clips", choice.clips))
    questions = sum(len(task[i].questions) for i in range(choice.clips))
    return {"path": str(path), "clips": choice.clips, "questions": questions}


def baselines(choice: BenchChoice) -> tuple[list[dict[str, Any]], str]:
    """Chance and text-only guessing, as records and as a table."""
    from jvidprune.procedural.baselines import baselines as measure
    from jvidprune.procedural.baselines import table

    task = choice.task()
    rows = measure(choice.task("validation" if choice.split == "train" else "train", _FITTED), task)
    return [dataclasses.asdict(row) for row in rows], table(rows)
