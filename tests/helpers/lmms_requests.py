"""Requests as lmms-eval hands them over."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Request:
    """What the adapter reads of lmms-eval's Instance."""

    args: tuple[Any, ...]


def to_visual(doc):
    return doc["visual"]


def ask(text, doc=0, **settings):
    return Request((text, settings, to_visual, doc, "task", "test"))


def rate(text, continuation, doc=0):
    return Request((text, continuation, to_visual, doc, "task", "test"))
