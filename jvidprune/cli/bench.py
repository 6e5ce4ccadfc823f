"""`jvidprune bench`: the procedural benchmark as files, and what its questions give away without the clips."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from jvidprune.cli.options import OUTPUT, Common, print_json
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from jvidprune.cli.console import Console
    from jvidprune.procedural.benchmark import Procedural
    from jvidprune.procedural.settings import BenchmarkSetting

# Clips that the text-only baseline is fitted on; only their questions are made.
_FITTED = 8000


@dataclasses.dataclass(frozen=True)
class BenchChoice:
    """Which clips."""

    split: Literal["train", "validation", "test"] = "test"
    """Seeds of different splits never overlap."""
    clips: int = 200
    """Number of clips."""
    setting: Literal["default", "detailed"] | None = None
    """Setting of the benchmark: "default" has 8 frames and ten categories, "detailed" 16 larger frames and sixteen
    (docs/evaluation.md)."""
    model: str | None = None
    """Checkpoint folder or hub id, in place of --setting: the setting that it was trained for."""
    frames: int | None = None
    """Frames of a clip, one a second; by default those of the setting."""
    difficulty: float = 0.5
    """0 to 1."""

    def task(
        self, split: Literal["train", "validation", "test"] | None = None, clips: int | None = None
    ) -> "Procedural":
        """The clips, or others of the same kind.

        Raises:
          JvidpruneError: impossible numbers, a setting beside a model, or a model that cannot be read.
        """
        from jvidprune.fields import Range, checked
        from jvidprune.procedural.benchmark import in_setting

        checked(self.clips, Annotated[int, Range(1, 1_000_000)], "clips")
        given: dict[str, Any] = {} if self.frames is None else {"frames": self.frames}
        setting = self.named_setting()
        return in_setting(setting, split or self.split, clips or self.clips, difficulty=self.difficulty, **given)

    def named_setting(self) -> "BenchmarkSetting":
        """The setting asked for, else the one that the model's folder declares, else the default one.

        Raises:
          JvidpruneError: a setting beside a model, or a model that cannot be read.
        """
        from jvidprune.llm.folder import declared_benchmark

        if self.model is None:
            return self.setting or "default"
        if self.setting is not None:
            raise JvidpruneError(f"{self.model} says itself what it was trained for: leave out --setting or --model.")
        return declared_benchmark(self.model)


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
