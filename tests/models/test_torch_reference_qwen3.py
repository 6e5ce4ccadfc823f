"""Qwen3-VL with experts and Qwen3.5 against the model classes of transformers, live; see `test_torch_reference`."""

import importlib.util

import numpy as np
import pytest
from helpers import seeded
from helpers.places import REPOSITORY
from helpers.torch_processors import modules

from jvidprune.parity.models import compare_model_folder

pytestmark = pytest.mark.torch_reference


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5"])
def test_the_model_is_that_of_transformers(tmp_path, family, name):
    """On weights and patches of another seed than the golden files, and another grid."""
    modules()
    path = REPOSITORY / "experiments" / f"golden_{family}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    folder = seeded.write(tmp_path / "m", made.SETS[name][0], 101)
    np.savez(folder / "io.npz", **made.run(folder, (2, 6, 8), 102))
    (report,) = compare_model_folder(folder)
    assert [row for row in report.rows if row.verdict != "ok"] == []
