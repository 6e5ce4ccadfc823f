"""What a model checks before it encodes: can it give the evidence a reducer asks for?"""

from collections.abc import Set
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.tokens import EVIDENCE, QUESTION

NO_QUESTION = (
    "the evidence text is the question, and none was passed: give it as question= where the video is encoded or "
    "reduced, or ask about the video."
)


NO_TEXT_TOWER = (
    "the evidence joint_text comes from the text tower of the original SigLIP, and none was loaded: name it with "
    "text_tower= or --text-tower, or take the relevance from the question's embeddings (relevance='text' of cdpruner)."
)


def check_evidence(family: str, needs: Set[str], provides: Set[str], text: Any) -> None:
    """JvidpruneError that names evidence this model cannot attach, or says that no question was passed for "text"."""
    if unknown := sorted(needs - EVIDENCE.keys()):
        raise JvidpruneError(f"unknown evidence {', '.join(unknown)}; known: {', '.join(EVIDENCE)}.")
    if lacking := sorted(needs - provides - QUESTION):
        if lacking == ["joint_image"]:
            raise JvidpruneError(
                f"{family} cannot give evidence joint_image with this checkpoint: the LLaVA families can with the "
                "original SigLIP (text_tower= or --text-tower), and cdpruner with relevance='text' needs none."
            )
        raise JvidpruneError(
            f"{family} cannot give evidence {', '.join(lacking)} with this checkpoint; "
            f"it gives: {', '.join(sorted({*provides, 'text'}))}."
        )
    if "text" in needs and text is None:
        raise JvidpruneError(NO_QUESTION)
