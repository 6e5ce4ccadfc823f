"""Damaged videos: whatever a file holds, reading it succeeds or ends in one sentence, without hanging or hoarding."""

import resource

import numpy as np
import pytest
from helpers.films import encode_with, numbered
from helpers.fuzzing import bounded, damaged, fuzz, one_sentence
from hypothesis import strategies as st

from jvidprune.video import decode

KINDS = {
    "film.mp4": ("libx264", {"g": "4", "bf": "2"}),
    "film.avi": ("mpeg4", {}),
    "film.mkv": ("libx264", {"g": "4"}),
    "film.ts": ("libx264", {}),
    "film.mov": ("mjpeg", {"strict": "unofficial"}),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return {
        name: encode_with(folder / name, numbered(8, 32, 48), codec, **opts).read_bytes()
        for name, (codec, opts) in KINDS.items()
    }


@bounded(240)
def test_damaged_videos_end_in_a_sentence(films, tmp_path, examples):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def check(drawn):
        name, data = drawn
        path = tmp_path / name
        path.write_bytes(data)
        with one_sentence():
            info = decode.probe(path)
            assert info.frames >= 1
            assert np.isfinite([info.fps, info.duration]).all()
        for wish in ({"num_frames": 3}, {"fps": 2.0}, {"indices": [0]}):
            with one_sentence():
                clip = decode.read_frames(path, **wish)
                assert clip.frames.ndim == 4
                assert clip.frames.dtype == np.uint8
                assert np.isfinite(clip.timestamps).all()

    fuzz(examples, st.sampled_from(sorted(films)).flatmap(lambda n: st.tuples(st.just(n), damaged(films[n]))), check)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, (
        "more than a GiB for films of a few kB"
    )
