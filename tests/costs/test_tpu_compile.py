"""Reducers compiled for a TPU chip that need not be there: bytes, temporaries, and that nothing grows with the ratios.

Runs where libtpu is installed (`pip install libtpu`): python -m pytest -m tpu_compile
"""

import importlib
import os

import pytest

from jvidprune import parallel
from jvidprune.costs import hlo

pytestmark = pytest.mark.tpu_compile

MEBI = 2**20


@pytest.fixture(scope="module")
def cells():
    pytest.importorskip("libtpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return importlib.import_module("experiments.perf.tpu_cells")


@pytest.mark.parametrize(
    ("method", "one_gb"), [("evs", 0.7), ("visionzip", 0.6), ("fastvid", 0.7), ("tome", 0.3), ("visionzip_qwen", 0.45)]
)
def test_eight_ratios_cost_at_most_three_of_one_and_their_outputs(cells, method, one_gb):
    rows = {}
    for ratios in (1, 8):
        compiled = cells.lowered(cells.TPUCell(method, ratios)).compile()
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes <= 300 * MEBI
        rows[ratios] = hlo.traffic(compiled.as_text()).main, memory.output_size_in_bytes
        # (T, N, D) in float32 is the widest array that one ratio needs; eight need no wider one but the output.
        widest = max(size for size, opcode in hlo.arrays(compiled.as_text()) if size != rows[ratios][1])
        assert widest <= max(4 * 32 * 196 * 3584, rows[ratios][1])
    (one, _), (eight, outputs) = rows[1], rows[8]
    assert one <= 1e9 * one_gb
    assert eight <= 3 * one + outputs


def test_one_ratio_of_aot_reads_its_frames_three_times(cells):
    """Cosines of all frames (68 MB) lie beside the arithmetic, in one layout for all stages."""
    compiled = cells.lowered(cells.TPUCell("aot")).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 16 * MEBI
    frames = 2 * 32 * 729 * 3584
    assert hlo.traffic(compiled.as_text()).main <= 3 * frames + 1.2 * memory.output_size_in_bytes


@pytest.mark.parametrize("sizes", [(4, 16, 4), (64, 1, 4), (8, 8, 4), (1, 128, 2)])
def test_a_mesh_may_split_the_sides_of_a_slice(cells, sizes):
    """jax.make_mesh refuses all of these on 16 x 16 chips."""
    data, fsdp, tensor = sizes
    devices = cells.slice_named("v6e:16x16").devices
    mesh = parallel.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
    assert mesh.devices.shape == sizes
    assert set(mesh.devices.flat) == set(devices)
    # Neighbours on the fastest axis are neighbours in the machine.
    first, second = mesh.devices[0, 0, :2]
    assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1
