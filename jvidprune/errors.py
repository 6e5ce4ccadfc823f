"""The one error type that reaches a user as a sentence."""


class JvidpruneError(ValueError):
    """A problem the user can fix: one sentence that names the value and what is allowed.

    The command line prints the sentence without a traceback and exits with code 2. It is a `ValueError`, so library
    code that calls jvidprune can catch it without importing this module.
    """
