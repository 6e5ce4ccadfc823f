"""lmms-eval's own task code beside our loaders: the same prompts, videos, letters, verdicts and scores.

Not in the default run, as `test_lmms_eval.py`. What was compared stands in docs/lmms-eval-tasks.md, which these tests
check; JVIDPRUNE_LMMS_TABLE=1 writes it anew.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
from helpers.lmms_tasks import CASES, HEAD, compare

from jvidprune.evals.markdown import grid
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.video.encode import write_mp4

pytestmark = pytest.mark.lmms_eval

TABLE = Path(__file__).parents[2] / "docs" / "lmms-eval-tasks.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was found, by task; filled by the tests."""
    assert importlib.util.find_spec("lmms_eval"), "lmms-eval is not installed: pip install -e '.[test,lmms-eval]'"
    return {}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(path, render(ClipSpec(seed=1, frames=120, size=(32, 32))).frames, 6.0)
    return path


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """No hub, no downloads, and stand-ins for what lmms-eval's task files import and the compared parts never call."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("MOTIONBENCH_AUTO_DOWNLOAD", "0")
    if importlib.util.find_spec("decord") is None:
        stand_in = types.ModuleType("decord")
        stand_in.VideoReader, stand_in.cpu = None, None
        monkeypatch.setitem(sys.modules, "decord", stand_in)
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *args, **settings: True)


@pytest.mark.parametrize("name", CASES)
def test_our_loader_gives_what_the_task_gives(name, found, film, tmp_path, monkeypatch):
    one = compare(name, tmp_path, film, monkeypatch)
    found[name] = one
    assert (one.prompts, one.videos) == (one.documents, one.documents)
    assert one.letters[0] == one.letters[1]
    assert one.verdicts == one.answers
    assert one.longest[0] in (None, one.longest[1])
    for theirs, ours in one.scores.values():
        # LongVideoBench's is rounded to five digits.
        assert ours == pytest.approx(theirs, abs=6e-6)


def test_the_table_of_the_documentation_is_what_was_found(found):
    if set(found) != set(CASES):
        pytest.skip("needs the comparison of every task before it")
    rows = grid(HEAD, [one.row() for one in found.values()])
    if os.environ.get("JVIDPRUNE_LMMS_TABLE"):
        head = TABLE.read_text(encoding="utf8").partition("\n| ")[0]
        TABLE.write_text(f"{head}\n{rows}\n", encoding="utf8")
    assert rows in TABLE.read_text(encoding="utf8")
