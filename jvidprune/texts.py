"""Methods and their parts as they are typed: "name:key=value,key=(other:key=value)", lists and chains of these."""

import ast
import difflib
import re
from typing import Any

from jvidprune.errors import JvidpruneError, quoted


def pieces(text: str, separator: str) -> list[str]:
    """Splits at a separator outside of brackets, a plus only in front of a name (not that of "1e+3").

    Raises:
      JvidpruneError: brackets that do not match.
    """
    parts, depth = [""], 0
    for place, mark in enumerate(text):
        depth += (mark in "([{") - (mark in ")]}")
        between = mark == separator and depth == 0
        if between and separator == "+":
            between = not re.match(r"\s*[\d.]", text[place + 1 :])
        if between:
            parts.append("")
        else:
            parts[-1] += mark
        if depth < 0:
            break
    if depth:
        raise JvidpruneError(f"the brackets of {quoted(repr(text), 200)} do not match.")
    return [part.strip() for part in parts]


def split_texts(text: str) -> list[str]:
    """Splits "a,b:x=1,y=2,c" into ["a", "b:x=1,y=2", "c"]: settings stay with the method they follow."""
    parts: list[str] = []
    for part in pieces(text, ","):
        if parts and re.match(r"\w+\s*=", part):
            parts[-1] += "," + part
        elif part:
            parts.append(part)
    return parts


def split_chain(text: str) -> list[str]:
    """Splits "a:x=1+b" into its stages ["a:x=1", "b"]."""
    return pieces(text, "+")


def read_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of "name:key=value,key=value", values as Python literals; bare words and bracketed texts are
    strings.

    Raises:
      JvidpruneError: a setting without "=", or one that is given twice.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, pieces(rest, ",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise JvidpruneError(
                f"a reducer's settings are written name:key=value,key=value, got {quoted(repr(text), 200)}."
            )
        if key in settings:
            raise JvidpruneError(f"{key} is given twice in {quoted(repr(text), 200)}.")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            settings[key] = value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value
    return name.strip(), settings


def whole_number(text: str) -> int | None:
    """A number in decimal digits, of up to 15 of them; None for any other text."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 15 else None


def shown(value: Any) -> str:
    """A value inside a sentence."""
    try:
        text = f"{value:g}" if type(value) is float and value == float(f"{value:g}") else repr(value)
    except Exception:  # a repr of somebody's own, or an integer too long to print
        text = f"a {type(value).__name__}"
    return quoted(" ".join(text.split()))


def unknown(kind: str, value: object, allowed: tuple[str, ...], of: str = "") -> str:
    """The sentence about an unknown name, with the nearest known one."""
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5) if isinstance(value, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {shown(value)}{of}; known: {', '.join(allowed)}.{hint}"
