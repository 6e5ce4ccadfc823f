"""A clip for the command line."""

import pytest


@pytest.fixture(scope="module")
def clip(home):
    from jvidprune.procedural.clips import ClipSpec, render, write_mp4

    path = home / "clip.mp4"
    write_mp4(path, render(ClipSpec(seed=3, frames=12)).frames, 6.0)
    return path
