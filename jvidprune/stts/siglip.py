"""SigLIP towers for STTS."""

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.models.attention import attend_all
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import map_chunks
from jvidprune.models.siglip import Siglip
from jvidprune.stts.tower import Blocks, PackedAttend


@dataclasses.dataclass(frozen=True, eq=False)
class SiglipTower(Blocks):
    """The blocks of a SigLIP tower as `tower.run_tower` needs them.

    Attributes:
      vision: the tower.
      chunk: whole frames that go through at once, static.
    """

    vision: Siglip
    chunk: int = 8

    @property
    def groups(self) -> Int[np.ndarray, "N"] | None:
        """None: every block sees whole frames."""
        return None

    def embed(self, pixels: Float[Array, "F C S S"]) -> Float[Array, "F N D"]:
        """Patches with positions."""
        return self.vision.embed(pixels)

    def run_frames(
        self,
        x: Float[Array, "F N D"],
        start: int,
        stop: int,
        *,
        active: Bool[Array, "F N"] | None = None,
        bias: Float[Array, "F N"] | None = None,
    ) -> Float[Array, "F N D"]:
        """Blocks [start, stop) on whole frames, chunk by chunk."""
        if active is None and bias is None:
            return map_chunks(lambda part: self.vision.run(part, start, stop)[0], x, self.chunk)

        kind: AttentionKind = self.vision.config.attention

        def run(parts: dict[str, Array]) -> Array:
            def attend(q: Array, k: Array, v: Array) -> Array:
                return attend_all(q, k, v, valid=parts.get("active"), bias=parts.get("bias"), kind=kind)[0]

            return self.vision.run(parts["x"], start, stop, attend=attend)[0]

        given = {"x": x, "active": active, "bias": bias}
        return map_chunks(run, {name: part for name, part in given.items() if part is not None}, self.chunk)

    def run_packed(
        self, y: Float[Array, "R S D"], start: int, stop: int, *, patches: Int[Array, "R S"], attend: PackedAttend
    ) -> Float[Array, "R S D"]:
        """Blocks [start, stop) on any tokens; positions are in them already."""
        return self.vision.run(y, start, stop, attend=lambda q, k, v: attend(q, k, v, True))[0]
