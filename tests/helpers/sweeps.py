"""A short sweep through its verb, and what it wrote."""

import contextlib
import json
import os
import sys

import pytest

from jvidprune import cli

WORDS = ["--clips", "4", "--methods", "random,dycoke", "--ratios", "0.25,0.1", "--max-new-tokens", "2"]
WORDS += ["--controls", "none", "--one-frame", "no"]


def sweep(home, model, out, *words):
    """Runs the verb in this process and returns the folder it wrote to."""
    exit_code(home, model, out, *words)
    return out


def exit_code(home, model, out, *words):
    """Runs the verb in this process and returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JVIDPRUNE_CACHE", str(home))
        patch.setattr(sys, "argv", ["jvidprune", "sweep", "--model", str(model), *WORDS, *words, "--out", str(out)])
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            try:
                cli.main()
            except SystemExit as ended:
                return ended.code
    return 0


def results(folder):
    """What a run found, without times."""
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return sorted(samples, key=lambda r: (r["clip"], r["question"], r["method"], r["ratio"]))


def table(folder):
    """The accuracy columns of table.csv."""
    return [line.split(",")[:12] for line in (folder / "table.csv").read_text().splitlines()]


def has_lines(path, count):
    return path.exists() and path.read_bytes().count(b"\n") >= count
