"""Small texts: numbers that were typed, values inside sentences, the nearest known name."""

import difflib
from typing import Any

from jvidprune.errors import quoted


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
