"""What a model checks before it encodes: can it give the evidence a reducer asks for?"""

from collections.abc import Set
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.tokens import EVIDENCE


def check_evidence(family: str, needs: Set[str], provides: Set[str], text: Any) -> None:
    """JvidpruneError that names evidence this model cannot attach; "text" is there when the caller passes it."""
    if unknown := sorted(needs - EVIDENCE.keys()):
        raise JvidpruneError(f"unknown evidence {', '.join(unknown)}; known: {', '.join(EVIDENCE)}.")
    given = set(provides) | (set() if text is None else {"text"})
    if lacking := sorted(needs - given):
        raise JvidpruneError(
            f"{family} cannot give evidence {', '.join(lacking)} with this checkpoint; "
            f"it gives: {', '.join(sorted(given))}."
        )
