"""How verbs talk to people: progress on stderr, results on stdout; all of it silent on request."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Console:
    """Prints for a person, or nothing when quiet."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self._out = RichConsole(quiet=quiet)
        self._err = RichConsole(stderr=True, quiet=quiet)
        self._progress: Progress | None = None

    def note(self, text: str) -> None:
        """One line of information on stderr."""
        self._err.print(text, style="dim", highlight=False)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Progress bars live inside; they vanish when done."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        # Without a terminal all that bars leave behind is an empty line.
        with Progress(
            *columns, TimeElapsedColumn(), console=self._err, transient=True, disable=not self._err.is_terminal
        ) as progress:
            self._progress = progress
            try:
                yield
            finally:
                self._progress = None

    def task(self, name: str, total: int | None = None) -> Callable[[int, int | None], None]:
        """Starts a bar; the returned function takes (done, total)."""
        if self._progress is None:
            return lambda done, total=None: None
        for task in self._progress.tasks:
            self._progress.remove_task(task.id)
        task_id = self._progress.add_task(name, total=total)

        def update(done: int, total: int | None = None) -> None:
            if self._progress is not None:
                self._progress.update(task_id, completed=done)
                if total is not None:
                    self._progress.update(task_id, total=total)

        return update

    def bars(self) -> Callable[[str, int, int], None]:
        """Progress of a run, (what is done, pairs done, pairs), as a bar for each thing that it does in turn."""
        bar, text = None, ""

        def progress(doing: str, done: int, total: int) -> None:
            nonlocal bar, text
            if bar is None or doing != text:
                bar, text = self.task(doing, total), doing
            bar(done, total)

        return progress

    def start(self, name: str) -> None:
        """A bar without a known end."""
        self.task(name)

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._out.width

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks on."""
        return self._out.is_terminal

    def print(self, *things: Any, plain: bool = False, unbroken: bool = False, width: int | None = None) -> None:
        """Text with rich's markup, or tables, on standard output.

        Args:
          things: to print.
          plain: do not colour numbers and names inside text.
          unbroken: do not break long lines.
          width: in columns, in place of the terminal's.
        """
        self._out.print(*things, highlight=not plain, soft_wrap=unbroken, width=width)


def marked(text: str) -> str:
    """Text that holds no markup, as it stands."""
    return escape(text)
