"""What a verb says of videos and annotations that it leaves out: on the way, in the end, and to machines."""

from collections.abc import Sequence
from typing import Any

from jvidprune.cli.console import Console, marked
from jvidprune.evals.items import LeftOut

LISTED = 20
"""Sentences about what was left out that are printed; machines and reports get all of them."""


def note_left_out(bad: Sequence[LeftOut], console: Console) -> None:
    """Tells people what of a task cannot be asked before it begins: the first few, and how many there are."""
    names, wrong = [one.item for one in bad if one.missing], [one for one in bad if not one.missing]
    if names:
        some = ", ".join(names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        many = f"{len(names)} videos are" if len(names) > 1 else "1 video is"
        console.note(f"{many} missing and left out: {some}{more}")
    for one in wrong[:LISTED]:
        console.note(f"left out: {one}")
    if len(wrong) > LISTED:
        console.note(f"left out: {len(wrong) - LISTED} more")


def listed(bad: Sequence[LeftOut]) -> list[dict[str, str]]:
    """What is left out, for machines."""
    return [{"item": one.item, "file": one.file, "reason": one.reason} for one in bad]


def nothing_answered(name: str, bad: Sequence[LeftOut]) -> str:
    """The sentence about a task of which nothing could be asked."""
    first = bad[0] if bad else "it has no questions."
    more = f" ({len(bad) - 1} more {'is' if len(bad) == 2 else 'are'} left out, too)" if len(bad) > 1 else ""
    return f"nothing of {name} could be answered{more}: {first}"


def show_left_out(console: Console, record: dict[str, Any]) -> None:
    """What was left out, a sentence each."""
    bad = record["left_out"]
    if bad:
        console.print(f"[yellow]left out: {len(bad)}[/yellow]")
    for one in bad[:LISTED]:
        text = one["reason"] if one["item"] in one["reason"] else f"{one['item']}: {one['reason']}"
        console.print(f"  {marked(text)}", plain=True, unbroken=True)
    if len(bad) > LISTED:
        console.print(f"  and {len(bad) - LISTED} more")
