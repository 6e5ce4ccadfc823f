"""What can be answered without looking: chance, and guesses from the text alone."""

import collections
import dataclasses
from collections.abc import Callable, Iterable

from jvidprune.evals.items import LETTERS, Question, Task, chance

Group = Callable[[Question], str]


@dataclasses.dataclass(frozen=True)
class TextOnly:
    """Guesses from how often each answer was right, fitted on questions without their clips.

    Answers are counted in words, so that an option is judged by what it says as well as by its letter. Counts of the
    exact question decide where it was seen at least `least` times, those of its group otherwise.

    Attributes:
      tables: counts for each key: how often an answer was admitted and how often it was right.
      group: what a question has in common with others, e.g. its template.
      least: sightings from which an exact question is trusted.
    """

    tables: dict[tuple[str, ...], dict[str, list[int]]]
    group: Group
    least: int = 20

    @classmethod
    def fit(cls, questions: Iterable[Question], group: Group, least: int = 20) -> "TextOnly":
        """Counts answers of a training split."""
        tables: dict = collections.defaultdict(lambda: collections.defaultdict(lambda: [0, 0]))
        for question in questions:
            for key in _keys(question, group):
                for option in _admitted(question):
                    tables[key][option][0] += 1
                    tables[key][option][1] += option == question.content
        return cls({key: dict(table) for key, table in tables.items()}, group, least)

    def answer(self, question: Question) -> str:
        """Its guess: a letter for "choice", the answer itself otherwise."""
        for key in _keys(question, self.group):
            table = self.tables.get(key, {})
            rates = {
                option: (right / seen, seen)
                for option in _admitted(question)
                for seen, right in [table.get(option, [0, 0])]
                if seen
            }
            if rates and sum(seen for _, seen in rates.values()) >= self.least * len(rates):
                best = max(rates, key=lambda option: rates[option])
                return LETTERS[question.options.index(best)] if question.kind == "choice" else best
        return LETTERS[0] if question.kind == "choice" else next(iter(question.options), "")


def _keys(question: Question, group: Group) -> tuple[tuple[str, ...], ...]:
    return (question.kind, question.text), (question.kind, group(question))


def _admitted(question: Question) -> tuple[str, ...]:
    return question.options or (question.content,)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What a category gives away.

    Attributes:
      category: its name, "all" for every question.
      questions: number that was measured.
      chance: mean accuracy of a uniform guess among the admitted answers.
      text_only: accuracy of `TextOnly`.
      letter: accuracy of the most frequent answer (a letter, yes or no, a word) of each kind.
    """

    category: str
    questions: int
    chance: float
    text_only: float
    letter: float


def baselines(train: Task, test: Task, group: Group | None = None, *, least: int = 20) -> list[Baseline]:
    """Chance and text-only accuracy of each category, fitted on one split and measured on another.

    Args:
      train: questions to fit on; their clips are not loaded.
      test: questions to measure on.
      group: what a question has in common with others, by default its template for the procedural benchmark's questions
        and its category for others.
      least: sightings from which an exact question is trusted.
    """
    group = group or _group
    fitted = [question for i in range(len(train)) for question in train[i].questions]
    asked = [question for i in range(len(test)) for question in test[i].questions]
    guess = TextOnly.fit(fitted, group, least)
    counts: dict = collections.defaultdict(collections.Counter)
    for question in fitted:
        counts[question.category, question.kind][question.answer] += 1
    rows = []
    for category in (*test.categories, "all"):
        of = [question for question in asked if category in (question.category, "all")]
        if of:
            letters = [counts[question.category, question.kind].most_common(1) for question in of]
            hits = [bool(top) and top[0][0] == question.answer for top, question in zip(letters, of, strict=True)]
            text = [guess.answer(question) == question.answer for question in of]
            guessing = sum(chance(question) for question in of) / len(of)
            rows.append(Baseline(category, len(of), guessing, sum(text) / len(of), sum(hits) / len(of)))
    return rows


def _group(question: Question) -> str:
    from jvidprune.procedural.templates import template_of

    return template_of(question) or question.category


def table(rows: Iterable[Baseline]) -> str:
    """Baselines as a Markdown table, accuracies in per cent."""
    lines = ["| category | questions | chance | text only | most frequent |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        numbers = (f"{100 * value:.1f}" for value in (row.chance, row.text_only, row.letter))
        lines.append(f"| {row.category} | {row.questions} | {' | '.join(numbers)} |")
    return "\n".join(lines)
