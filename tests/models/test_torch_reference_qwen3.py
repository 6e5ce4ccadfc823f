"""Qwen3-VL with experts and Qwen3.5 against the model classes of transformers, live; see `test_torch_reference`."""

import numpy as np
import pytest
from helpers import seeded
from helpers.families import all_agree, script
from helpers.torch_processors import modules

pytestmark = pytest.mark.torch_reference


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5"])
def test_the_model_is_that_of_transformers(tmp_path, family, name):
    """On weights and patches of another seed than the golden files, and another grid."""
    modules()
    made = script(family)
    folder = seeded.write(tmp_path / "m", made.SETS[name][0], 101)
    np.savez(folder / "io.npz", **made.run(folder, (2, 6, 8), 102))
    all_agree(folder, {"pixel_values_videos", "video_grid_thw", "input_ids"})
