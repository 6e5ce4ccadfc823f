"""What `jvidprune train` is told on the command line; light, for the parser reads it at every start."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TrainChoice:
    """What to train and how, as it was written on the command line."""

    topk: float = 0.5
    """Share of the visual tokens that is REMOVED, as the released code calls it."""
    prune_at: int | None = None
    """0-based tower block whose output is scored; by default 3, or half way up a tower of fewer than 8 blocks."""
    window: int = 1
    """Tokens on a side of the windows that are kept or removed together."""
    coefficient: float = 0.5
    """Factor of the auxiliary loss."""
    prune_method: Literal["scorer", "random", "heuristic", "easy"] = "scorer"
    """What ranks the windows: the scorer that is learned, or a baseline, for which the model can be trained too."""
    steps: int = 150
    """Steps of the optimiser."""
    rates: str = "scorer=1e-4,tower=5e-6,connector=5e-6,llm=1e-5"
    """Peak learning rates; groups that are not named, or at 0, stay as they are."""
    rows: int = 4
    """Rows of a step."""
    row_clips: int = 1
    """Most clips of a row."""
    slots: int | None = None
    """Tokens of a row; by default what the first clips with all their questions take."""
    questions: int = 8
    """Most questions about a procedural clip."""
    accumulate: int = 1
    """Parts that a step is computed in, one after the other."""
    warmup: int | None = None
    """Steps to the peak rate; by default 200, or a tenth of a shorter run."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    decay: float = 0.0
    """Weight decay of matrices."""
    z: float = 1e-4
    """Coefficient of the softmax's auxiliary loss, 0 for none."""
    precision: Literal["float32", "bfloat16", "pure_bfloat16"] = "float32"
    """"bfloat16" computes in it and keeps float32 parameters."""
    remat: bool = False
    """Compute layers again in the backward pass: less memory, more time."""
    mesh: str = ""
    """Devices, as in "data=2,fsdp=2,tensor=2"; by default one."""
    seed: int = 0
    """Of the order of clips, of the scorer's first weights and of random pruning."""
    task: str = "procedural"
    """"procedural", or a benchmark whose local copy lies in --data."""
    data: Path | None = None
    """Folder with a benchmark's annotations and videos."""
    train_clips: int | None = None
    """Learn from the first so many clips only."""
    log: int = 10
    """Steps between lines of the curve."""
    every: int = 50
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept, besides the one with the best held-out accuracy."""
    eval_every: int = 50
    """Steps between measurements on held-out clips, 0 for none."""
    eval_clips: int = 32
    """Held-out clips."""
    eval_frames: int | None = None
    """Frames of held-out clips, with as many tokens kept as in training (test-time scaling)."""
    strict: bool = False
    """Stop at the first video or annotation of a benchmark that cannot be used, instead of leaving it out."""
    tensorboard: bool = False
    """Write TensorBoard's event files."""
