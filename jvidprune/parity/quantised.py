"""How far a model with quantised weights is from its float32 reference, beside the same model in bfloat16.

Nothing passes or fails here: a weight of one byte is another weight. Shown are the relative error of the logits and how
many tokens come out the same.
"""

import re
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import load_model
from jvidprune.models.quantised import Quantise
from jvidprune.parity.core import load_golden
from jvidprune.parity.models import io_files, stages_of

_LOGITS = re.compile(r"logits(_tail)?(?P<how>_\w+)?")
"""Keys of a reference's logits, of the whole prompt or of its end; behind them how the prompt was made, where a file
has several ways or names its one. The greedy answer of the same way ends alike."""


class Deviation(NamedTuple):
    """How far one way to hold weights leads from the reference on one file.

    Attributes:
      file: name.
      family: of the model.
      held: type of the model, and of the language model's matrices where that is another.
      logits: root of the summed squares of differences over that of the reference, over all slots.
      from_bfloat16: the same between quantised and bfloat16; None for bfloat16 itself.
      best: share of the slots whose best token is the reference's.
      greedy: tokens of the greedy answers that are the reference's in the same place.
      tokens: of the greedy answers.
    """

    file: str
    family: str
    held: str
    logits: float
    from_bfloat16: float | None
    best: float
    greedy: int
    tokens: int


def deviations(folder: str | Path, quantise: Quantise) -> list[Deviation]:
    """The distances of bfloat16, and of quantised matrices with bfloat16 around them, from each `io*.npz` of a folder.

    Args:
      folder: a tiny checkpoint with the arrays of its reference run.
      quantise: see `models.quantised.Quantise`.

    Raises:
      JvidpruneError: no such folder, a checkpoint that cannot be loaded, a family without stage comparisons, a file
        without logits, or no qwix.
    """
    files = io_files(folder)
    plain, small = (load_model(folder, dtype=jnp.bfloat16, quantise=kind) for kind in (None, quantise))
    found = []
    for path in files:
        golden = load_golden(path)
        told = [match for key in sorted(golden.arrays, key=len) if (match := _LOGITS.fullmatch(key))]
        if not told:
            raise JvidpruneError(f"{path} holds no logits to compare with.")
        key, answer = told[0].group(), "greedy_ids" + (told[0]["how"] or "")
        before = None
        for loaded, held in ((plain, "bfloat16"), (small, f"bfloat16, {quantise}")):
            stages, _ = stages_of(loaded, golden)
            logits = np.asarray(stages[key].ours(), np.float64)
            same = total = 0
            if golden.has(answer):
                total, same = golden[answer].size, int((np.asarray(stages[answer].ours()) == golden[answer]).sum())
            best = float((logits.argmax(-1) == golden[key].argmax(-1)).mean())
            distance = None if before is None else _relative(logits, before)
            name = path.name, loaded.family, held
            found.append(Deviation(*name, _relative(logits, golden[key]), distance, best, same, total))
            before = logits
    return found


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
