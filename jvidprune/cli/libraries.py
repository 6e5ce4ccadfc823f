"""What other libraries may say while a verb runs: nothing."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from jvidprune.errors import JvidpruneWarning

_ALWAYS = {
    # transformers advises to install PyTorch, which nothing here needs.
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    # Native code of XLA and gRPC: errors alone.
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "2",
}
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


@contextlib.contextmanager
def silent(*, quiet: bool) -> Iterator[None]:
    """Warnings and log lines of libraries go nowhere inside; what the environment sets itself stays as it is.

    Args:
      quiet: their progress bars and this package's own warnings as well.
    """
    added = {name: value for name, value in (_ALWAYS | (_QUIET if quiet else {})).items() if name not in os.environ}
    os.environ.update(added)
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
                if not quiet:
                    warnings.simplefilter("default", JvidpruneWarning)
            yield
    finally:
        logging.disable(level)
        for name in added:
            os.environ.pop(name, None)
