"""Options that several verbs share, and how results are printed for machines; nothing heavy is imported here."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


# Written again, so that help and completion come without the libraries below `inference` and `models`.
ConventionName = Literal["released", "transformers", "lmms-eval"]
QuantiseName = Literal["int8", "fp8"]
MropeRuleName = Literal["released", "transformers-5", "transformers-4.57", "lmms-eval"]


@dataclasses.dataclass(frozen=True)
class Output:
    """How a verb talks."""

    quiet: bool = False
    """Print the result alone: no progress, no tables."""
    json: bool = False
    """Print one JSON object for machines."""
    debug: bool = False
    """Show the traceback of an error."""

    def console(self) -> "Console":
        """What talks to people: silent where the result alone or an object for machines is wanted."""
        from jvidprune.cli.console import Console

        return Console(quiet=self.quiet or self.json)


@dataclasses.dataclass(frozen=True)
class CheckpointChoice:
    """Which checkpoint, and how videos get into it."""

    model: str | None = None
    """Checkpoint folder or hub id; by default the embedded model."""
    frames: int | None = None
    """Frames sampled at most, of a rate too; by default what the family was evaluated with, or the folder says."""
    pooling_head: str | None = None
    """Folder or hub id of the original SigLIP, whose pooling head FastVID needs on the LLaVA families."""
    text_tower: str | None = None
    """Folder or hub id of the original SigLIP, whose text tower CDPruner can compare tokens with (relevance=joint) on
    the LLaVA families."""
    limits: str = ""
    """What is accepted of a video file, as in "seconds=7200,pixels=9000000" (also frames, bytes, total)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    template: str | None = None
    """Prompt template by name, or "chat" for the checkpoint's own; by default that of the convention."""
    positions: Literal["renumbered", "original"] | None = None
    """Positions of kept tokens, for all methods; by default each one's, else the checkpoint's, else the reference's."""
    convention: ConventionName | None = None
    """Whose sampling, pixel limits, resizing, template, positions and markers (docs/conventions.md); by default the
    authors' released code's."""
    mrope_rule: MropeRuleName | None = None
    """Positions of the Qwen-VL families in place of the convention's."""
    allow_code: bool = False
    """Import the module of a method that is not jvidprune's, where the checkpoint's jvidprune_config.json names one."""


@dataclasses.dataclass(frozen=True)
class ModelChoice(CheckpointChoice):
    """Which model reads the video, how, and on which devices."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of parameters and activations; "auto" is that of the checkpoint."""
    quantise: QuantiseName | None = None
    """Hold the language model's matrices in one byte a weight (docs/models.md); needs the extra quantise."""
    fps: float | None = None
    """Frames a second instead of a number, by the family's own rule and limits; --frames is the most then."""
    mesh: str = ""
    """Devices to divide the model over, as in "data=2,tensor=4", or "auto" for a copy on each; by default the first."""


@dataclasses.dataclass(frozen=True)
class ProcessChoice:
    """Which of several processes this is; found out by itself under SLURM and on TPU pods."""

    coordinator: str | None = None
    """host:port of process 0."""
    processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Number of this one, from 0."""
    host: str = ""
    """Run the share of one of several independent processes, as in "0/4", without any coordinator."""


Common = Annotated[Output, OmitArgPrefixes]
Checkpoint = Annotated[CheckpointChoice, OmitArgPrefixes]
Model = Annotated[ModelChoice, OmitArgPrefixes]
Processes = Annotated[ProcessChoice, OmitArgPrefixes]
Video = Annotated[Path | None, Positional, arg(metavar="VIDEO", help="Video file; by default a generated clip.")]

OUTPUT, CHECKPOINT, MODEL = Output(), CheckpointChoice(), ModelChoice()
PROCESSES = ProcessChoice()
"""Their defaults."""


def print_json(value: Any) -> None:
    """One object for machines on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
