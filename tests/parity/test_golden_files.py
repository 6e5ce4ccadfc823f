"""Every golden file of the tests passes in all its rows, by the comparers of its own method and by no others."""

import jax
import pytest
from helpers import reducer_checks as checks
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


def name(path):
    return f"{path.parent.name}/{path.stem}"


def passing():
    files = [path for path in FILES if name(path) not in BY_CASE]
    return [pytest.param(path, marks=() if name(path) in SLOW else pytest.mark.golden, id=name(path)) for path in files]


@pytest.fixture
def forget_programs_of_a_file():
    """Those of all files would fill several GB."""
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("forget_programs_of_a_file")
@pytest.mark.parametrize("path", passing())
def test_every_row_passes(path):
    checks.check_golden(path, comparers())


@pytest.mark.parametrize("path", ALL, ids=name)
def test_its_own_method_alone_takes_a_file(path):
    golden, folder = core.load_golden(path), path.parent.name
    found = [comparer.compare.__module__.rpartition(".")[2] for comparer in comparers() if comparer.recognises(golden)]
    assert bool(found) == (path in FILES)
    assert all(module == folder or module.startswith(f"{folder}_") for module in found)


def test_the_files_that_are_named_here_are_there():
    assert {*BY_CASE, *SLOW} <= {name(path) for path in FILES}
    assert all((GOLDEN / folder).is_dir() for folder in ELSEWHERE)
