"""Every golden file of the tests passes in all its rows, by the comparers of its own method and by no others.

Of each comparer one file is also compared with changed values: every array that it compares is really looked at.
"""

import jax
import pytest
from helpers import reducer_checks as checks
from helpers.changed_values import smallest_files, unnoticed, watch_comparisons
from helpers.places import GOLDEN

from jvidprune.parity import core
from jvidprune.parity.registry import comparers

ALL = sorted(GOLDEN.rglob("*.npz"))
ELSEWHERE = {"models", "qwen_utils"}
"""Folders that other tests read: those of models and of sampling."""

FILES = [path for path in ALL if path.relative_to(GOLDEN).parts[0] not in ELSEWHERE]

BY_CASE = {"aot/pipeline", "stop/edges"}
"""Files of many cases, of which the tests of their methods take one after another."""

SLOW = {"flashvid/ablations", "stts/tower_n81_t6_p50"}
"""Files left out of the optimised run, where they compile for a minute: other files make the same choices."""

SMALLEST = smallest_files(FILES, comparers())
"""The file of each comparer whose values are changed."""


def name(path):
    return f"{path.parent.name}/{path.stem}"


def in_order(paths):
    """The files of `SMALLEST` first: tests of the same number in their lists then follow each other, with programs."""
    return sorted(paths, key=lambda path: (path not in SMALLEST, name(path) in BY_CASE, path))


def marks(path):
    """The gate runs nearly all files optimised (.ci/optimised), and one of each comparer as the other tests run."""
    if name(path) in SLOW:
        return [pytest.mark.slow]
    return [pytest.mark.golden] + ([] if path in SMALLEST else [pytest.mark.long])


def passing():
    files = [path for path in in_order(FILES) if name(path) not in BY_CASE]
    return [pytest.param(path, marks=marks(path), id=name(path)) for path in files]


def changed():
    """Those of STTS have many arrays, and its programs are long, as are those of `SLOW`."""
    slow = {path: path.parent.name == "stts" or name(path) in SLOW for path in in_order(SMALLEST)}
    return [pytest.param(path, marks=[pytest.mark.slow] * is_slow, id=name(path)) for path, is_slow in slow.items()]


_LAST = [None]


@pytest.fixture
def programs_of_one_file(request):
    """Programs of a file go before the next one: those of all would fill several GB."""
    path = request.node.callspec.params["path"]
    if path != _LAST[0]:
        jax.clear_caches()
        _LAST[0] = path


@pytest.mark.usefixtures("programs_of_one_file")
@pytest.mark.parametrize("path", passing(), scope="module")
def test_every_row_passes(path):
    checks.check_golden(path, comparers())


@pytest.mark.usefixtures("programs_of_one_file")
@pytest.mark.parametrize("path", changed(), scope="module")
def test_a_changed_value_is_noticed(path, monkeypatch):
    assert unnoticed(SMALLEST[path], core.load_golden(path), watch_comparisons(monkeypatch)) == set()


@pytest.mark.parametrize("path", ALL, ids=name)
def test_its_own_method_alone_takes_a_file(path):
    golden, folder = core.load_golden(path), path.parent.name
    found = [comparer.compare.__module__.rpartition(".")[2] for comparer in comparers() if comparer.recognises(golden)]
    assert bool(found) == (path in FILES)
    assert all(module == folder or module.startswith(f"{folder}_") for module in found)


def test_the_files_that_are_named_here_are_there():
    assert {*BY_CASE, *SLOW} <= {name(path) for path in FILES}
    assert all((GOLDEN / folder).is_dir() for folder in ELSEWHERE)
