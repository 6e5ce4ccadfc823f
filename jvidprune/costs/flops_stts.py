"""FLOPs of a SigLIP tower that prunes while it runs (STTS): dense blocks, scorer, packed blocks, projected patches."""

import math

from jvidprune.costs.flops_model import siglip
from jvidprune.models.siglip import SiglipConfig
from jvidprune.reducers.counting import Terms
from jvidprune.stts import STTSConfig, Windows


def stts_tower(vision: SiglipConfig, windows: Windows, config: STTSConfig, *, frames: int, kept: int) -> Terms:
    """The terms of `flops_model.siglip`, and the scorer's.

    Packed blocks run on ceil(S / N) rows of N slots for S patches that stay, and attend twice: in rows, and across the
    boundaries between them.

    Args:
      vision: the tower.
      windows: of a frame.
      config: settings; packing "flat" is counted.
      frames: T.
      kept: windows that stay of all.
    """
    size, width = vision.tokens, vision.width
    dense = siglip(vision, frames)
    if kept >= frames * windows.count:
        packed = float(frames)
        passes = 1.0
    else:
        packed = float(math.ceil(windows.active_bound(kept, frames) / size))
        passes = 2.0 - 1.0 / packed
    before = min(config.first_packed, vision.layers) / vision.layers
    share = before + (1 - before) * packed / frames
    attention = before + (1 - before) * packed / frames * passes
    terms = {
        "patches": dense["patches"],
        "matrices": dense["matrices"] * share,
        "attention": dense["attention"] * attention,
    }
    if config.method == "scorer":
        hidden = vision.mlp
        count, members = windows.patches.shape
        pooler = 2 * size * width**2 + 2 * count * width**2 + 2 * count * members * width
        mlp = count * (2 * width * hidden + hidden**2 + hidden)
        terms["scorer"] = 2.0 * frames * (pooler + mlp)
    return terms


def stts_projector(vision: SiglipConfig, windows: Windows, width: int, *, kept: int) -> Terms:
    """The projector on the patches that kept tokens are pooled from."""
    patches = kept * windows.tokens_each * windows.token_patches.shape[1]
    return {"matrices": 2.0 * patches * (vision.width * width + width**2)}
