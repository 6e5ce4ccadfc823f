"""Where things lie: the repository, the tests and the golden files."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
GOLDEN = TESTS / "golden"
MODELS = GOLDEN / "models"


def import_paths(*more):
    """`PYTHONPATH` of a process that a test starts: the tests' helpers, the repository, and folders of its own."""
    return os.pathsep.join([*map(str, more), str(TESTS), str(REPOSITORY)])
