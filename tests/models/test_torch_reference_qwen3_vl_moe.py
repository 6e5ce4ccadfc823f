"""Qwen3-VL with experts against the model class of transformers, live; see `test_torch_reference`."""

import importlib.util

import numpy as np
import pytest
from helpers import seeded
from helpers.places import REPOSITORY
from helpers.torch_processors import modules

from jvidprune.parity.models import compare_model_folder

pytestmark = pytest.mark.torch_reference


@pytest.mark.parametrize("number", [0, 1])
def test_the_model_is_that_of_transformers(tmp_path, number):
    """On weights and patches of another seed than the golden files, and another grid."""
    modules()
    path = REPOSITORY / "experiments" / "golden_qwen3_vl_moe.py"
    spec = importlib.util.spec_from_file_location("golden_qwen3_vl_moe", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    _, raw, _ = made.SETS[number]
    folder = seeded.write(tmp_path / "m", raw, 101)
    np.savez(folder / "io.npz", **made.run(made.build(folder), raw, (2, 6, 8), 102))
    (report,) = compare_model_folder(folder)
    assert [row for row in report.rows if row.verdict != "ok"] == []
