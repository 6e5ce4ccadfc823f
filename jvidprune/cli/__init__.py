"""The command line: one file a verb, with what the verbs share (options, console)."""

from jvidprune.cli.app import main

__all__ = ["main"]
