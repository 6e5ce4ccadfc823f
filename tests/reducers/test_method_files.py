"""Every method's file says its algorithm first: steps and an example that runs, then the code in the same order."""

import doctest
import importlib

import pytest

from jvidprune.reducers import registry

CLASSES = [registry.reducer_class(name) for name in (*registry.names(), *registry.combinators())]
MODULES = sorted({cls.__module__ for cls in CLASSES})
ORDER = ("needs", "prepare", "decide", "apply", "budget", "capacity", "inner", "PRESETS", "info")


@pytest.mark.parametrize("module", MODULES)
def test_the_example_of_a_method_runs(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_method_reads_from_what_it_decides_to_what_is_said_of_it(cls):
    members = list(vars(cls))
    found = [members.index(name) for name in ORDER if name in members]
    assert found == sorted(found)
