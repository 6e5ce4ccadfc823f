"""Shared by all tests: nothing reaches a hub or the user's cache; small programs are compiled without optimisation."""

import importlib.util
import os
import sys
import tempfile

import pytest
from hypothesis import settings

# The gate draws the same examples every time; `HYPOTHESIS_PROFILE=new python -m pytest` draws others.
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

# Nearly all of a run is compilation of programs that then run once: unoptimised they compile in a quarter of the time.
# `XLA_FLAGS= python -m pytest` tests what users run; with an accelerator's plugin everything stays as it is. The extra
# option is free text, so that a jaxlib that no longer knows it passes over it instead of aborting. A program in one
# part instead of many compiles in four fifths of the time.
if importlib.util.find_spec("jax_plugins") is None:
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    )

# Compiled programs and generated models of a run, shared by its processes.
if "JVIDPRUNE_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jvidprune-tests-", ignore_cleanup_errors=True)
    os.environ["JVIDPRUNE_CACHE"] = _cache.name


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of a file are freed behind it.

    Each keeps several memory maps; those of the whole run exceed what Linux grants a process (65,530), and the next
    compilation then ends in a segmentation fault.
    """
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for the cache and the outputs of a file's tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(home):
    """A small LLaVA-OneVision with random weights, in a checkpoint folder."""
    from helpers import untrained

    return untrained.write(home / "model")


@pytest.fixture
def run(capfd, monkeypatch, home):
    """Runs a command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("JVIDPRUNE_CACHE", str(home))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["jvidprune", *map(str, words)])
        from jvidprune import cli

        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call
