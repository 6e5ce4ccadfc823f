"""The error types that reach a user as a sentence, and what other errors become in one."""

import contextlib
from collections.abc import Iterator
from typing import ClassVar


class JvidpruneError(ValueError):
    """A problem the user can fix: one sentence that names the value and what is allowed.

    The command line prints the sentence without a traceback and exits with `exit_code`. It is a `ValueError`, so
    library code that calls jvidprune can catch it without importing this module.

    Attributes:
      exit_code: of the command line: 2, the same command would fail again.
    """

    exit_code: ClassVar[int] = 2


class TransientError(JvidpruneError):
    """A problem that passes by itself: the same command may succeed later.

    Attributes:
      exit_code: of the command line: 75, EX_TEMPFAIL of sysexits.h; whoever starts processes may start this one again.
    """

    exit_code: ClassVar[int] = 75


class JvidpruneWarning(UserWarning):
    """A result that is not what was asked for, with what to do about it, in one sentence."""


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever a file or clip ends in while it is read is a sentence about it.

    Raises:
      JvidpruneError: in place of any other error of the body.
    """
    try:
        yield
    except JvidpruneError:
        raise
    except Exception as error:
        raise JvidpruneError(f"{name} cannot be read: {type(error).__name__}: {reason(error)}.") from error


def reason(error: BaseException, longest: int = 300) -> str:
    """What an error of another library says, as the end of a sentence: its first line, without its full stop.

    Args:
      error: the error.
      longest: characters kept.
    """
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return quoted(lines[0], longest).rstrip(".")


def quoted(value: object, longest: int = 60) -> str:
    """A value from a file inside a sentence: printable, on one line and cut off where it is long."""
    shown = value if isinstance(value, str) and value.isprintable() else repr(value)
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
