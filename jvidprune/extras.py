"""Packages that come with extras: one sentence where one is missing."""

import importlib

from jvidprune.errors import JvidpruneError

EXTRAS: dict[str, str] = {
    "pyarrow": "eval",
    "libtpu": "tpu",
    "flatbuffers": "export",
    "optax": "train",
    "orbax": "train",
    "grain": "train",
    "tensorboardX": "train",
    "gradio": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "playwright": "browser",
    "nbclient": "notebooks",
    "ipykernel": "notebooks",
    "jupyterlab": "notebooks",
    "httpx2": "judge",
    "lmms_eval": "lmms-eval",
    "torch": "lmms-eval",
    "qwix": "quantise",
}
"""The extra that brings a package, by the package's top module."""


def need(what: str, *modules: str) -> None:
    """Imports modules that an extra brings.

    Args:
      what: needs them, as the beginning of a sentence.
      modules: dotted names.

    Raises:
      JvidpruneError: one cannot be imported; which, and the extra that brings it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise JvidpruneError(missing(what, error, module)) from error


def missing(what: str, error: ImportError, module: str) -> str:
    """What to say of a module that cannot be imported.

    Args:
      what: needs it, as the beginning of a sentence.
      error: of the import.
      module: that was imported.
    """
    top = module.partition(".")[0]
    broken = (error.name or top).partition(".")[0]
    # A package that is there may lack one that it needs itself.
    named = top if broken == top else f"{top} with {broken}"
    return f"{what} needs {named}: pip install 'jvidprune[{EXTRAS[top]}]'."
