"""The score in what a judge wrote: a JSON object as it was asked for, or whatever says one number without doubt."""

import json
import math
import re
from typing import Any

from jvidprune.errors import quoted

_THOUGHT = re.compile(r"^.*</think(?:ing)?>|^\s*<think.*$", re.DOTALL)
_OBJECT = re.compile(r"\{[^{}]*\}")
_VALUE = r"""["'*\s]*(-?\d+(?:\.\d+)?|yes|no)\b["'*]*(?!\s*[-–]\s*\d)(?:\s*(?:/|out of)\s*(\d+))?"""
_NAMED = re.compile(r"""\b(?:score|verdict|rating)\b["'*]*\s*(?:is|:|=)""" + _VALUE, re.IGNORECASE)
_ALONE = re.compile(_VALUE + r"""["'*\s.]*""", re.IGNORECASE)
_WORDS = {"yes": 1.0, "no": 0.0}


def read_score(reply: str, top: int) -> float:
    """The score of a reply, from 0 to `top`.

    What a model thinks before its answer, up to `</think>`, does not count. Read are a JSON object with "score" or
    "verdict", else phrases such as "score: 4", else a reply that is nothing but a number, yes or no.

    Args:
      reply: of a judge.
      top: of the scale; yes and no are read where it is 1.

    Raises:
      ValueError: no score, several that differ, or one that is not on the scale.
    """
    text = _THOUGHT.sub("", reply).strip()
    found = [value for part in _OBJECT.findall(text) for value in _in_object(part)]
    if not found:
        alone = _ALONE.fullmatch(text)
        said = _NAMED.findall(text) or ([alone.groups("")] if alone else [])
        found = [value for value, _ in said]
        if other := {out_of for _, out_of in said if out_of and out_of != str(top)}:
            raise ValueError(f"its score is out of {quoted(min(other))}, not {top}")
    if not found:
        raise ValueError(f"there is no score in {quoted(repr(text), 120)}" if text else "the reply is empty")
    scores = {score_of(value, top) for value in found}
    if len(scores) > 1:
        raise ValueError(f"there are {len(scores)} different scores in {quoted(repr(text), 120)}")
    return scores.pop()


def read_letter(reply: str, letters: str) -> str:
    """The letter that a reply begins with; what a model thinks before its answer does not count.

    Args:
      reply: of a judge.
      letters: capitals that it may be.

    Raises:
      ValueError: it begins with none of them.
    """
    text = _THOUGHT.sub("", reply).strip().lstrip("\"'*(")
    if not text or text[0].upper() not in letters or text[1:2].isalpha():
        raise ValueError(f"there is none of {', '.join(letters)} in {quoted(repr(text), 120)}")
    return text[0].upper()


def score_of(value: Any, top: int) -> float:
    """A value as a score.

    Raises:
      ValueError: it is none, or not on the scale.
    """
    number = math.nan
    if isinstance(value, str) and top == 1 and value.strip().lower() in _WORDS:
        number = _WORDS[value.strip().lower()]
    elif isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}(\.\d{1,9})?\s*", value):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= top else math.inf
    if not 0 <= number <= top:
        scale = "yes, no or a number from 0 to 1" if top == 1 else f"a number from 0 to {top}"
        raise ValueError(f"the score {quoted(repr(value))} is not {scale}")
    return number


def _in_object(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    values = [found.get(name) for name in ("score", "verdict")]
    return [value for value in values if value is not None]
