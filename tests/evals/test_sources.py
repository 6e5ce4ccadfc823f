"""A run is what it ran: a user's own reducer, cost or function is known by its source and its settings."""

import dataclasses
import functools
import importlib
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.own_method import MINE

from jvidprune.evals.identity import plain, run_hash
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.runner import run_sweep
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops.transport import Transport
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers import registry

MODULE = (
    MINE
    + """
def cost(x, y):
    return x + 1
"""
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of one's own and imports it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"{tmp_path.name.replace('-', '_')}_{part}" for part in ("mine", "helper")]

    def write(*, sign="-1", change=("", "")):
        (tmp_path / f"{names[1]}.py").write_text(f"sign = {sign}\n")
        (tmp_path / f"{names[0]}.py").write_text(MODULE.format(helper=names[1]).replace(*change))
        importlib.invalidate_caches()
        for name in names:
            sys.modules.pop(name, None)
            for cached in (tmp_path / "__pycache__").glob(f"{name}*"):
                cached.unlink()
        return importlib.import_module(names[0])

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_an_edited_reducer_is_another_run_and_its_old_answers_stay(own, model, tmp_path):
    llm, task, out = VideoLLM.load(model), Procedural("test", clips=1, side=56, questions=1), tmp_path / "out"

    def run(reducer):
        return run_sweep(llm, task, SweepPlan({"mine": reducer}, (0.25,), 1), out)

    first = run(own().Mine())
    assert (first.resumed, len(first.samples)) == (0, 3)
    assert run(own().Mine()).resumed == 3
    # The baselines are what they were, the method is asked again, and after it is edited back it is known again.
    edited = run(own(change=("sign * norms", "-sign * norms")).Mine())
    assert (edited.resumed, len(edited.samples)) == (2, 3)
    assert run(own(sign="1").Mine()).resumed == 2
    assert run(own().Mine(share=0.5)).resumed == 2
    assert run(own().Mine()).resumed == 3
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 2 + 4


def test_sources_follow_the_file_its_own_imports_and_nothing_else(own):
    known = run_hash({"x": plain(own().Mine())})
    assert run_hash({"x": plain(own().Mine())}) == known
    others = [own(sign="2").Mine(), own().Mine(share=0.5), own(change=("stable=True", "stable=False")).Mine()]
    assert len({run_hash({"x": plain(one)}) for one in others} | {known}) == 4
    # A cost or rule inside of one of the package's methods.
    chain = registry.get("aot")
    costs = [module.cost for module in (own(), own(change=("x + 1", "x + 2")), own())]
    holders = [dataclasses.replace(chain, intra_transport=Transport(cost)) for cost in costs]
    marks = [run_hash({"x": plain(one)}) for one in holders]
    assert marks[0] == marks[2] != marks[1]
    assert ' source": {' not in json.dumps(plain(chain))
    assert ' source": {' in json.dumps(plain(own().Mine()))


def make(factor):
    """A function that carries a value along."""

    def score(x):
        return x * factor

    return score


class Loose:
    """Settings without a dataclass."""

    def __init__(self, alpha):
        self.alpha = alpha


def test_objects_without_fields_are_told_apart_by_what_they_hold():
    def mark(value):
        return run_hash({"x": plain(value)})

    assert mark(Loose(1)) == mark(Loose(1)) != mark(Loose(2))
    assert mark(make(2)) == mark(make(2)) != mark(make(3))
    assert mark(functools.partial(make, 2)) == mark(functools.partial(make, 2)) != mark(functools.partial(make, 3))
    assert mark(np.arange(3)) != mark(np.arange(4))
    assert mark(np.dtype("float32")) != mark(np.dtype("float16"))
    assert mark({"b", "a"}) == mark({"a", "b"})
    assert "0x" not in json.dumps([plain(make(2)), plain(Loose(1)), plain(Loose(1).__init__)])
    # Nothing but code stands behind what is typed at a prompt.
    typed = []
    for text in ("x + 1", "x + 2", "x + 1"):
        module = types.ModuleType("typed_at_a_prompt")
        sys.modules[module.__name__] = module
        exec(
            f"def helper(x):\n    return {text}\nclass Typed:\n    def plan(self, x):\n        return helper(x)",
            vars(module),
        )
        typed.append(mark(module.Typed()))
    del sys.modules["typed_at_a_prompt"]
    assert typed[0] == typed[2] != typed[1]
    again = Loose(1)
    again.alpha = again
    assert mark(again) == mark(again)


def test_marks_are_those_of_the_next_process(own, tmp_path):
    own()
    (name,) = [path.stem for path in tmp_path.glob("*_mine.py")]
    script = f"import {name}; from jvidprune.evals.identity import plain, run_hash; "
    script += f"print(run_hash(plain({name}.Mine())), run_hash(plain({{'f': {name}.cost, 's': {{'a', 'b', 'c'}}}})))"
    found = {
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1
