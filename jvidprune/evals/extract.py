"""What a generated answer says: the letter of an option, yes or no, or a short text.

lmms-eval's tasks each read letters by a rule of their own (`lmms_rules`); `option_letter` is ours, for other wordings.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jvidprune.evals import lmms_rules
from jvidprune.evals.items import LETTERS
from jvidprune.evals.spans import grade_span

_LEADS = (
    "the best answer is",
    "the correct answer is",
    "the answer is",
    "the answer",
    "the best option is",
    "the correct option is",
    "best answer:",
    "best option:",
    "answer:",
    "option:",
)
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_FILLERS = frozenset({"a", "an", "the", "it", "is", "was", "there", "are", "its"})


def option_letter(text: str, options: Sequence[str]) -> str:
    """The letter an answer picks, "" if it picks none.

    Patterns in this order, each of which one of lmms-eval's tasks uses: a lead such as "The answer is" is dropped; the
    answer is a letter, alone or as "(A)", "A.", "A)", "A:" in front of other words; "(A)" anywhere; "A." anywhere; a
    capital letter standing alone anywhere; the text of an option as the answer or inside it (the longest that occurs).
    With several letters the last one counts, as MMMU's parser has it, without its random guess when there is none.

    Args:
      text: the generated answer.
      options: texts of the options, with or without "A. " in front.
    """
    allowed = LETTERS[: len(options)]
    said = _without_lead(text)
    leading = re.match(rf"[(\[]?([{allowed}{allowed.lower()}])(?:[)\].:,]|$|\s*$)", said)
    if leading:
        return leading.group(1).upper()
    for pattern in (
        rf"\(([{allowed}])\)",
        rf"(?<![A-Za-z])([{allowed}])[.):]",
        rf"(?<![A-Za-z'])([{allowed}])(?![A-Za-z'])",
    ):
        # "A" at the start of a sentence of words is an article, not a letter.
        found = [m.group(1) for m in re.finditer(pattern, said) if not _is_article(said, m)]
        if found:
            return found[-1]
    return _by_text(said, options)


def first_letter(text: str, options: Sequence[str]) -> str:
    """The letter by the rule of VideoMME's task: the first of the option letters anywhere in the answer.

    Leads such as "The best answer is" are dropped first. Any capital of the range matches: "Because of B" reads as B,
    but "Cats, so A" as C, which `option_letter` does not do.
    """
    said = text.strip()
    for lead in _LEADS[:8]:
        said = re.sub(re.escape(lead), "", said, flags=re.IGNORECASE)
    found = re.search(f"[{LETTERS[: len(options)]}]", said)
    return found.group(0) if found else ""


def yes_or_no(text: str) -> str:
    """ "yes" or "no": the first of the two words in the answer, "" if neither occurs."""
    found = re.search(r"\b(yes|no)\b", text.lower())
    return found.group(1) if found else ""


def yes_or_no_first(text: str) -> str:
    """ "yes" or "no" where the answer begins with it, even in a longer word, as TempCompass's task has it."""
    return next((word for word in ("yes", "no") if text.lower().startswith(word)), "")


def short_text(text: str) -> str:
    """A short answer normalised as VQA scoring does: lower case, no punctuation or articles, number words as digits."""
    said = _without_lead(text).lower().strip()
    said = said.splitlines()[0] if said else ""
    words = re.sub(r"[^\w\s.:/-]|\.(?!\d)", " ", said).split()
    words = [str(_NUMBERS.index(word)) if word in _NUMBERS else word for word in words]
    kept = [word for word in words if word not in _FILLERS]
    return " ".join(kept or words)


Rule = Callable[[str, Sequence[str]], str]
RULES: dict[str, Rule] = {
    "letters": option_letter,
    "first_letter": first_letter,
    "lmms_first_four": lmms_rules.first_four,
    "lmms_ranked": lmms_rules.ranked,
    "lmms_mvbench": lmms_rules.mvbench,
    "lmms_egoschema": lmms_rules.egoschema,
    "lmms_nextqa": lmms_rules.nextqa,
    "lmms_longvideobench": lmms_rules.longvideobench,
    "lmms_tomato": lmms_rules.tomato,
    "lmms_perceptiontest": lmms_rules.perceptiontest,
    "lmms_motionbench": lmms_rules.motionbench,
    "lmms_tempcompass": lmms_rules.tempcompass,
}
"""How a task's choice letters are read, by the name a task gives as `extraction`."""

_YES_NO: dict[str, Callable[[str], str]] = {"lmms_tempcompass": yes_or_no_first}
"""Rules that read yes and no in a way of their own."""


def read_answer(text: str, kind: str, options: Sequence[str] = (), *, rule: str = "letters") -> str:
    """The answer in the form that is compared: a letter, "yes" or "no", or normalised text.

    Args:
      text: what the model wrote.
      kind: "choice", "yes_no" or "short".
      options: of a choice.
      rule: one of `RULES`, for choices.
    """
    if kind == "choice":
        return RULES[rule](text, options)
    return _YES_NO.get(rule, yes_or_no)(text) if kind == "yes_no" else short_text(text)


def grade(text: str, answer: str, kind: str, options: Sequence[str] = (), *, rule: str = "letters") -> dict[str, Any]:
    """What a sample's record says of an answer: under "correct" whether it is right, None where a judge has to say.

    Spans also have their overlap, "iou", and are right from half of it on.
    """
    if kind == "open":
        return {"correct": None}
    if kind == "span":
        return grade_span(text, answer)
    return {"correct": is_correct(text, answer, kind, options, rule=rule)}


def is_correct(text: str, answer: str, kind: str, options: Sequence[str] = (), *, rule: str = "letters") -> bool:
    """Whether a generated answer is the right one; `answer` is the letter, "yes" or "no", or the short text."""
    said = read_answer(text, kind, options, rule=rule)
    if kind == "choice":
        return said == answer.strip().upper()[:1]
    return said == (yes_or_no(answer) if kind == "yes_no" else short_text(answer)) != ""


def _without_lead(text: str) -> str:
    said = text.strip()
    for lead in _LEADS:
        if said.lower().startswith(lead):
            return said[len(lead) :].lstrip(" :").strip()
    return said


def _is_article(said: str, match: re.Match[str]) -> bool:
    return match.group(0) == "A" and re.match(r"\s+[a-z]", said[match.end() :]) is not None


def _by_text(said: str, options: Sequence[str]) -> str:
    plain = short_text(said)
    texts = [short_text(re.sub(r"^\(?[A-Z][).:]\s*", "", option)) for option in options]
    inside = [(len(text), -i) for i, text in enumerate(texts) if text and re.search(rf"\b{re.escape(text)}\b", plain)]
    return LETTERS[-max(inside)[1]] if inside else ""
