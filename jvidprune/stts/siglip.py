"""SigLIP towers for STTS."""

import dataclasses

from jaxtyping import Array, Float, Int

from jvidprune.models.attention import attend_all
from jvidprune.models.fused import AttentionKind
from jvidprune.models.siglip import Siglip
from jvidprune.stts.tower import PackedAttend, Tower


@dataclasses.dataclass(frozen=True, eq=False)
class SiglipTower(Tower):
    """The blocks of a SigLIP tower as `tower.run_tower` needs them.

    Attributes:
      vision: the tower.
      chunk: whole frames that go through at once, static.
    """

    vision: Siglip
    chunk: int = 8

    def embed(self, pixels: Float[Array, "F C S S"]) -> Float[Array, "F N D"]:
        """Patches with positions."""
        return self.vision.embed(pixels)

    @property
    def frames_at_once(self) -> int:
        """See `Tower.frames_at_once`."""
        return self.chunk

    def run_chunk(
        self, x: Array, start: int, stop: int, *, active: Array | None = None, bias: Array | None = None
    ) -> Array:
        """See `Tower.run_chunk`."""
        if active is None and bias is None:
            return self.vision.run(x, start, stop)[0]
        kind: AttentionKind = self.vision.config.attention

        def attend(q: Array, k: Array, v: Array) -> Array:
            return attend_all(q, k, v, valid=active, bias=bias, kind=kind)[0]

        return self.vision.run(x, start, stop, attend=attend)[0]

    def run_packed(
        self, y: Float[Array, "R S D"], start: int, stop: int, *, patches: Int[Array, "R S"], attend: PackedAttend
    ) -> Float[Array, "R S D"]:
        """Blocks [start, stop) on any tokens; positions are in them already."""
        return self.vision.run(y, start, stop, attend=lambda q, k, v: attend(q, k, v, True))[0]
