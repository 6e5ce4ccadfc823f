"""Reducers exported to a file: the same numbers as `reduce`, at every ratio that fits, and refusals in one sentence."""

import numpy as np
import pytest
from helpers.reducer_checks import make_video, refused

import jvidprune
from jvidprune import reducers
from jvidprune.reducers.exported import MAGIC, export_reducer, load_reducer


@pytest.fixture(scope="module")
def video():
    return make_video(frames=5)


@pytest.fixture(scope="module")
def file(video, tmp_path_factory):
    return export_reducer(tmp_path_factory.mktemp("exported") / "flashvid.bin", reducers.get("flashvid"), video, 0.4)


@pytest.mark.slow
def test_one_file_serves_all_ratios_up_to_its_own(file, video):
    loaded = load_reducer(file)
    for ratio in (0.4, 0.15):
        served = loaded(video, ratio)
        alone = jvidprune.reduce(reducers.get("flashvid"), video, ratio, capacity=loaded.capacity)
        for name in ("tokens", "index", "valid", "mass", "slot"):
            np.testing.assert_allclose(getattr(served, name), getattr(alone, name), atol=1e-6, err_msg=name)


def test_what_does_not_fit_is_refused(file, video):
    loaded = load_reducer(file)
    refused(lambda: loaded(video, 1.0), "made for ratios up to 0.4")
    refused(lambda: loaded(video, 0.0), "must lie in")
    refused(lambda: loaded.reduce(video.features[:3], video.evidence, 0.2), "takes features of shape")
    refused(lambda: loaded.reduce(video.features.astype("bfloat16"), video.evidence, 0.2), "dtype float32, got")
    refused(lambda: loaded.reduce(video.features, {}, 0.2), "needs attention_last")


def test_other_files_are_refused(file, tmp_path):
    other = tmp_path / "other.bin"
    refused(lambda: load_reducer(other), "cannot read")
    other.write_bytes(b"{}")
    refused(lambda: load_reducer(other), "no exported reducer")
    content = file.read_bytes()
    for broken in (MAGIC, MAGIC + b"{}\n", content[: len(content) // 2]):
        other.write_bytes(broken)
        refused(lambda: load_reducer(other), "damaged")


def test_an_object_that_is_no_dataclass_of_a_module_cannot_be_saved(video, tmp_path):
    class Own:
        needs = frozenset()

        def budget(self, layout, ratio):
            return np.int32(1)

        def capacity(self, layout, ratio):
            return 1

        def plan(self, video, budget, *, capacity):
            raise NotImplementedError

    refused(lambda: export_reducer(tmp_path / "own.bin", Own(), video, 0.5), "cannot be saved")
