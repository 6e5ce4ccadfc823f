"""How lmms-eval's tasks read the letter out of an answer to a multiple choice: a rule each, as version 0.7.3 has them.

A rule takes the answer and the texts of the options and gives a letter. Where lmms-eval draws one at random ours gives
none, which is wrong: scores then lie below lmms-eval's by chance's share of the answers without a letter. Where
lmms-eval asks GPT whether an answer is right (TempCompass), ours gives none too.

The letters that a rule looks for are often a fixed range, whatever the number of options: that is lmms-eval's.
"""

import re
from collections.abc import Sequence

from jvidprune.evals.items import LETTERS

_OUTER = ",.!?;:'"
_LEADS = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_LVB_LEADS = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is"),
    *("The correct option is", "Best answer:", "Best option:"),
)
_MOTION_LEADS = ("THE BEST ANSWER IS", "THE CORRECT ANSWER IS", "THE ANSWER IS", "BEST ANSWER:", "ANSWER:")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def first_four(text: str, options: Sequence[str]) -> str:
    """VideoMME, MLVU and LVBench: `ranked` over A to D."""
    return _ranked(text, LETTERS[:4])


def ranked(text: str, options: Sequence[str]) -> str:
    """VideoEval-Pro: the letter in the form that is most surely an answer, of several the one that stands last.

    Forms from the surest down: the answer begins with the letter; ends with it; the first place of a letter behind
    words such as "the answer is"; "(A)"; "A."; "A:"; "A)"; "A" before a space; "A" anywhere, if nothing else is there.
    """
    return _ranked(text, LETTERS[: len(options)])


def _ranked(text: str, letters: str) -> str:
    if not text.strip():
        return ""
    said = f" {_bare(text.strip(), _OUTER + chr(34))} "
    inner, found = said.strip(), []
    for letter in letters:
        forms = ((6, f"({letter})"), (5, f"{letter}."), (4, f"{letter}:"), (3, f"{letter})"), (2, f"{letter} "))
        found += [(rank, said.rfind(form), letter) for rank, form in forms if form in said]
        for lead in _LEADS:
            at = said.lower().find(lead)
            place = -1 if at < 0 else said.find(letter, at + len(lead))
            if place >= 0:
                found.append((7, place, letter))
        if inner.startswith(letter) and not inner[1:2].isalpha():
            found.append((10, 0, letter))
        if inner.endswith(letter) and not inner[-2:-1].isalpha():
            found.append((9, len(said) - 1, letter))
    if not found:
        found = [(0, said.rfind(letter), letter) for letter in letters if letter in said]
    return max(found)[2] if found else ""


def mvbench(text: str, options: Sequence[str]) -> str:
    """MVBench: "B. text" at the start, else the first of A to E that is a word of its own, in small letters too.

    Punctuation is taken out first, which joins or parts words: "(B)" reads as B, and the article of "a dog" as A.
    """
    begun = re.match(r"([A-E])\.\s*(.+)$", text.strip(), re.IGNORECASE)
    if begun:
        return begun.group(1).upper()
    said = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = re.search(r"\d,\d", said) is not None
    plain = said
    for mark in _PUNCTUATION:
        beside = f"{mark} " in said or f" {mark}" in said
        plain = plain.replace(mark, "" if beside or grouped else " ")
    # lmms-eval passes a flag of value 32 where the number of replacements stands.
    plain = re.sub(r"\.(?!\d)", "", plain, count=32).strip("'").strip('"').strip(")").strip("(").strip().lower()
    word = re.search(r"\b([A-E])\b", plain, re.IGNORECASE)
    if word:
        return word.group(1).upper()
    return plain.upper() if len(plain) == 1 and plain.upper() in LETTERS else ""


def egoschema(text: str, options: Sequence[str]) -> str:
    """EgoSchema: "(A)", "A " or "A." of A to E, else an option's text in a longer answer.

    Of several the one that stands first counts, where each stands at its last place.
    """
    said = f" {_bare(text, _OUTER)} "
    forms = [form for shape in ("({})", "{} ", "{}.") for one in LETTERS[:5] if (form := shape.format(one)) in said]
    if forms:
        return min(forms, key=said.rfind).strip("(). ")
    found = _contents(said, [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)])
    return min(found, key=lambda one: one[1])[0] if found else ""


def nextqa(text: str, options: Sequence[str]) -> str:
    """NExT-QA: "(A)" of A to E, else "A ", else "A.", else an option's text in a longer answer; of several the last.

    Without brackets only letters between spaces have a place: where none of several has one, the first letter counts.
    """
    said = f" {_bare(text, _OUTER)} "
    for shape in ("({})", "{} ", "{}."):
        found = [letter for letter in LETTERS[:5] if shape.format(letter) in said]
        if found:
            place = "({})" if shape == "({})" else " {} "
            return max(found, key=lambda letter, place=place: said.rfind(place.format(letter)))
    contents = _contents(said, options)
    return max(contents, key=lambda one: one[1])[0] if contents else ""


def tomato(text: str, options: Sequence[str]) -> str:
    """TOMATO: any capital of the options, else an option's text in a longer answer, else A.

    Of several letters the last one in brackets counts, or the first of the alphabet where none is in brackets.
    """
    said = f" {_bare(text, _OUTER)} "
    found = [letter for letter in LETTERS[: len(options)] if letter in said]
    if found:
        return max(found, key=lambda letter: said.rfind(f"({letter})"))
    contents = _contents(said, options)
    return max(contents, key=lambda one: one[1])[0] if contents else "A"


def longvideobench(text: str, options: Sequence[str]) -> str:
    """LongVideoBench: the first capital of A to E, words such as "The answer is" taken out."""
    said = text.strip()
    for lead in _LVB_LEADS:
        said = said.replace(lead, "")
    found = re.search("[A-E]", said)
    return found.group(0) if found else ""


def perceptiontest(text: str, options: Sequence[str]) -> str:
    """PerceptionTest: the first of A to D that is a word of its own."""
    found = re.search(r"\b([A-D])\b", text)
    return found.group(1) if found else ""


def motionbench(text: str, options: Sequence[str]) -> str:
    """MotionBench: A to F as a word of its own, else before ".", ")" or ":", else anywhere; small letters count too.

    What stands before "</think>" and words such as "The answer is" are taken out.
    """
    said = text.split("</think>")[-1].strip().upper()
    for lead in _MOTION_LEADS:
        said = said.replace(lead, "")
    for pattern in (r"\b([A-F])\b", r"([A-F])[.):]", r"([A-F])"):
        found = re.search(pattern, said)
        if found:
            return found.group(1)
    return ""


def tempcompass(text: str, options: Sequence[str]) -> str:
    """TempCompass: a letter of A to D alone or before "." or ")", or an option as it stands in the question.

    Options of caption matching carry their names ("Sentence A: ..."): the option, its text, its name or the last word
    of that is accepted, and nothing else.
    """
    if any(": " not in option for option in options):
        begun = re.match(r"([A-D])(?:$|[.)])", text)
        return begun.group(1) if begun and (len(text) == 1 or text[1] in ".)") else ""
    named = [option.split(": ") for option in options]
    found = ""
    for number, option in enumerate(options):
        found = LETTERS[number] if option == text else found
    for number, parts in enumerate(named):
        if parts[1] == text or (") " in text and parts[1] == text.split(") ")[1]):
            found = LETTERS[number]
    for shorten in (False, True):
        for number, parts in enumerate(named):
            name = re.sub(r"(Sentence|Option|Caption) ", "", parts[0]) if shorten else parts[0]
            if name in (text, text.replace(".", "")):
                found = LETTERS[number]
    return found


def _bare(text: str, marks: str) -> str:
    """A text without marks around it, each stripped once, in their order."""
    for mark in marks:
        text = text.strip(mark)
    return text


def _contents(said: str, options: Sequence[str]) -> list[tuple[str, int]]:
    """Letters of the options whose texts are in an answer of more than five words, and where each stands last."""
    if len(said.split()) <= 5:
        return []
    plain = [option.strip().lower() for option in options]
    return [(LETTERS[i], said.lower().rfind(option)) for i, option in enumerate(plain[:5]) if option in said.lower()]
