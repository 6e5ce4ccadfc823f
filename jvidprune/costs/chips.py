"""Accelerators by name, with the numbers that their makers publish."""

import dataclasses
from typing import Literal

from jvidprune.errors import JvidpruneError

_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as it is written on the command line.
      title: as its maker writes it.
      kind: "gpu" or "tpu".
      memory: bytes of HBM.
      flops: bfloat16 operations a second, dense; a product and a sum are two.
      flops_f32: float32 operations a second at full precision; a TPU makes one of six bfloat16 products.
      bandwidth: bytes a second from HBM.
      link: bytes a second to neighbours, one direction, all links of a chip together.
      domain: chips that these links join.
      capability: CUDA compute capability, None on TPUs.
    """

    name: str
    title: str
    kind: Literal["gpu", "tpu"]
    memory: float
    flops: float
    flops_f32: float
    bandwidth: float
    link: float
    domain: int
    capability: float | None = None


def _gpu(
    name: str, title: str, memory: float, flops: float, f32: float, bandwidth: float, link: float, capability: float
) -> Chip:
    numbers = memory * _GIGA, flops * _TERA, f32 * _TERA, bandwidth * _GIGA, link * _GIGA
    return Chip(name, title, "gpu", *numbers, 8, capability)


def _tpu(name: str, title: str, memory: float, flops: float, bandwidth: float, gigabits: float, domain: int) -> Chip:
    # Interconnects are published in Gbit/s a chip, both directions of a link counted once.
    numbers = memory * _GIGA, flops * _TERA, flops * _TERA / 6, bandwidth * _GIGA, gigabits / 8 * _GIGA
    return Chip(name, title, "tpu", *numbers, domain)


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # NVIDIA data sheets of the SXM versions, without sparsity; half of NVLink's bidirectional 900 and 600 GB/s.
        _gpu("h100", "NVIDIA H100 SXM 80 GB", 80, 989.4, 66.9, 3350, 450, 9.0),
        _gpu("h200", "NVIDIA H200 SXM 141 GB", 141, 989.4, 66.9, 4800, 450, 9.0),
        _gpu("a100-40g", "NVIDIA A100 SXM 40 GB", 40, 312, 19.5, 1555, 300, 8.0),
        _gpu("a100-80g", "NVIDIA A100 SXM 80 GB", 80, 312, 19.5, 2039, 300, 8.0),
        # Google Cloud's pages on each version: HBM, peak bfloat16, HBM and interchip bandwidth, chips of a pod.
        _tpu("v4", "Google TPU v4", 32 * 1.073741824, 275, 1200, 2400, 4096),
        _tpu("v5e", "Google TPU v5e", 16, 197, 819, 1600, 256),
        _tpu("v5p", "Google TPU v5p", 95, 459, 2765, 4800, 8960),
        _tpu("v6e", "Google TPU v6e", 32, 918, 1640, 3584, 256),
    )
}
"""Chips by name."""


def chip(name: str) -> Chip:
    """A chip of the table.

    Raises:
      JvidpruneError: unknown name.
    """
    found = CHIPS.get(name.lower())
    if found is None:
        raise JvidpruneError(f"unknown chip {name!r}; known: {', '.join(CHIPS)}.")
    return found
