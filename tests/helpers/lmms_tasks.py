"""The same documents through lmms-eval's own task code and through ours: prompts, choices, videos, answers, scores.

A benchmark is a folder in the layout that lmms-eval caches, made of small generated annotations and one short film. Its
annotation file is opened by lmms-eval's `ConfigurableTask` with the settings of its own yaml, and by `open_dataset`.
"""

import contextlib
import dataclasses
import importlib.util
import inspect
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.layouts import write
from helpers.lmms_documents import CASES, TEXTS, Case, Row

from jvidprune.evals.datasets import answer_tokens, open_dataset
from jvidprune.evals.extract import grade, read_answer
from jvidprune.evals.items import Question
from jvidprune.evals.metrics import summarise
from jvidprune.evals.spans import ground


@dataclasses.dataclass(frozen=True)
class Compared:
    """What was found equal of a task.

    Attributes:
      task, ours: lmms-eval's name and ours.
      documents: how many.
      prompts, videos: of them with the same prompt, and the same file.
      answers: texts that were read as answers, over all documents.
      letters: of these, those of which lmms-eval tells the letter, and those with the same one.
      verdicts: of `answers`, those that both count as right, or both as wrong.
      undecided: of `answers`, those for which lmms-eval draws a letter or asks GPT, which are wrong here.
      scores: what lmms-eval reports of one answer a document, and ours.
      longest: tokens of an answer that lmms-eval allows, None where its task does not say, and ours.
    """

    task: str
    ours: str
    documents: int
    prompts: int
    videos: int
    answers: int
    letters: tuple[int, int]
    verdicts: int
    undecided: int
    scores: dict[str, tuple[float, float]]
    longest: tuple[int | None, int]

    def row(self) -> list[str]:
        """For the table in the documentation."""
        both = "; ".join(f"{name} {theirs:.4f}" for name, (theirs, _) in self.scores.items())
        verdicts = f"{self.verdicts:,} of {self.answers:,}" if self.answers else "none: a judge reads them"
        letters = f"{self.letters[1]:,} of {self.letters[0]:,}" if self.letters[0] else "–"
        documents = f"{self.prompts} of {self.documents}"
        return [f"`{self.task}`", f"`{self.ours}`", documents, verdicts, letters, f"{self.undecided:,}", both or "–"]


HEAD = ("lmms-eval's task", "ours", "prompts", "verdicts", "letters", "undecided", "score")


def answers(rng: random.Random, question: Question) -> list[str]:
    """Texts that a model may give: letters in many forms, options, and words in a row."""
    letters = "ABCDEFabcde"
    shapes = ("{}", "{}.", "({})", "{})", "{}: so", "The answer is {}", "The best answer is: ({}).", "Answer: {}")
    shapes += ("{}. text", "I think {} since", "It is {}!", "'{}'", "[{}]", "Not A. It is {}", "<think>A</think>{}")
    found = [shape.format(letter) for shape in shapes for letter in letters]
    texts = [*question.options, *TEXTS, *(part for option in question.options for part in option.split(": "))]
    found += [
        shape.format(text) for text in texts for shape in ("{}", "I am quite sure it must be {}", "A. {}", "({}) x")
    ]
    found += ["", "yes", "Yes, it does.", "No", "no.", "nothing", "It does not, no", "None", "..", "3,000", "A,B"]
    words = [
        *letters,
        *"()[].,:;-_/'\"",
        "answer is",
        "Because",
        "a",
        "The",
        "best option is",
        "5",
        "option",
        "Cat",
        "\n",
    ]
    found += [rng.choice(["", " "]).join(rng.choices(words, k=rng.randrange(2, 9))) for _ in range(200)]
    if question.kind == "span":
        times = [
            f"{a}{mid}{b}" for a in (0, 3.5, 12, "1:02") for b in (4, 20.25, 60, "1:10") for mid in ("-", " to ", " ")
        ]
        found = [*found[:80], *times, *(f"From {one} s, or {two}" for one in times[:6] for two in times[:6])]
    return found


def make(case: Case, home: Path, film: Path, rng: random.Random) -> list[Row]:
    """A copy of the benchmark below `home`; the rows of its annotations."""
    folder, rows = home / case.folder, case.rows(rng)
    write(folder, case.file, rows)
    for row in rows:
        place = folder / case.video(row)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, place)
        if case.ours == "videomme_w_subtitle" and row["videoID"] != "v0":
            (folder / "subtitle").mkdir(exist_ok=True)
            (folder / "subtitle" / f"{row['videoID']}.srt").write_text(_subtitles(rng), encoding="utf8")
    return rows


def _subtitles(rng: random.Random) -> str:
    sections = []
    for number in range(120):
        start = rng.randrange(0, 20_000)
        times = [f"00:00:{t // 1000:02d},{t % 1000:03d}" for t in (start, start + rng.randrange(50, 900))]
        text = f'<font color="white" size=".72c">line {number}</font>'
        text = rng.choice([text, text, text, "plain", f"{text}\n{text}"])
        sections.append(f"{number}\n{times[0]} --> {times[1]}\n{text}")
    return "\n\n".join(sections) + "\n"


def lmms_task(case: Case, home: Path) -> Any:
    """lmms-eval's task with the settings of its yaml, on the local annotations."""
    from lmms_eval import utils
    from lmms_eval.api.task import ConfigurableTask

    found = importlib.util.find_spec("lmms_eval")
    assert found is not None
    assert found.origin is not None
    config = utils.load_yaml_config(str(Path(found.origin).parent / "tasks" / case.task))
    file = home / case.folder / case.file
    if config["dataset_path"] != "text":
        config["dataset_path"] = file.suffix[1:]
    config["dataset_kwargs"] = {"data_files": {config["test_split"]: str(file)}}
    config.pop("dataset_name", None)
    return ConfigurableTask(config=config, model_name="jvidprune")


@contextlib.contextmanager
def decided(patch: Any, module: dict[str, Any]) -> Iterator[list[str]]:
    """Where lmms-eval would draw a letter or ask GPT, it finds none; the list grows each time."""
    asked: list[str] = []
    with patch.context() as inner:
        inner.setattr(random, "choice", lambda choices: asked.append("drawn") or "?")
        if "get_eval_result" in module:
            inner.setitem(module, "get_eval_result", lambda prompt: asked.append("GPT") or (None, 0))
        yield asked


def compare(name: str, home: Path, film: Path, patch: Any) -> Compared:
    """Everything about one task.

    Args:
      name: of `CASES`.
      home: an empty folder, which HF_HOME names.
      film: of every question.
      patch: pytest's MonkeyPatch.
    """
    case, rng = CASES[name], random.Random(name)
    make(case, home, film, rng)
    theirs, ours = lmms_task(case, home), open_dataset(case.ours, home / case.folder, frames=4)
    items = [(ours[i], q) for i in range(len(ours)) for q in ours[i].questions]
    items = [(item, q) for item, q in items if not case.only or q.category in case.only]
    docs = list(theirs.task_docs)
    assert len(docs) == len(items)
    process = theirs.config.process_results
    prompts = videos = count = told = letters = verdicts = undecided = 0
    kept, records = [], []
    for doc, (item, question) in zip(docs, items, strict=True):
        prompts += theirs.doc_to_text(doc) == question.prompt()
        (video,) = theirs.doc_to_visual(doc)
        videos += Path(video).resolve() == Path(item.file).resolve()
        if question.kind == "open":
            continue
        texts = answers(rng, question)
        chosen = _chosen(rng, texts, question, ours.extraction)
        for number, text in enumerate(texts):
            with decided(patch, process.__globals__) as asked:
                found = theirs.process_results(doc, [text])[case.metric]
            graded = grade(text.strip(), question.answer, question.kind, question.options, rule=ours.extraction)
            count += 1
            undecided += bool(asked)
            if question.kind == "span":
                verdicts += abs(_score(theirs, case.metric, [found]) / 100 - graded["iou"]) < 1e-9
            else:
                verdicts += bool(case.right(found)) == graded["correct"]
            if case.said is not None:
                told += 1
                said = read_answer(text.strip(), question.kind, question.options, rule=ours.extraction)
                letters += case.said(found) == said
            if number == chosen:
                kept.append(found)
                record = {"clip": item.id, "question": question.id, "method": "none", "ratio": 1.0}
                records.append(record | {"category": question.category, "kept": 1, "prompt": 1} | graded)
    scores = _scores(theirs, case, kept, records) if records else {}
    longest = (theirs.config.generation_kwargs or {}).get("max_new_tokens"), answer_tokens(case.ours)
    shown = (told, letters)
    return Compared(name, case.ours, len(docs), prompts, videos, count, shown, verdicts, undecided, scores, longest)


def _chosen(rng: random.Random, texts: list[str], question: Question, rule: str) -> int:
    """The number of an answer for the score: where there are right ones, one of them half of the time."""
    asked = question.answer, question.kind, question.options
    said = [number for number, text in enumerate(texts) if text.strip()]
    right = [number for number in said if grade(texts[number].strip(), *asked, rule=rule)["correct"]]
    return rng.choice(right if right and rng.random() < 0.5 else said)


def _score(task: Any, metric: str, kept: list[Any]) -> float:
    """lmms-eval's number for a metric."""
    made = task.aggregation()[metric]
    takes = len(inspect.signature(made).parameters)
    found = made(kept, None) if takes == 2 else made(kept)
    return found["overall"] if isinstance(found, dict) else found


def _scores(task: Any, case: Case, kept: list[Any], records: list[Row]) -> dict[str, tuple[float, float]]:
    """lmms-eval's numbers and ours, as shares."""
    if "iou" in records[0]:
        (found,) = ground(records, [("none", 1.0)], draws=2)
        names = ("timelens_mIOU", "timelens_IOU@3", "timelens_IOU@5", "timelens_IOU@7")
        values = (found.miou, *found.recall)
        return {name: (_score(task, name, kept) / 100, ours) for name, ours in zip(names, values, strict=True)}
    cells = summarise(records, [("none", 1.0)], draws=2)
    values = [cell.accuracy for cell in cells if (cell.category == "all") != case.mean]
    return {case.metric: (_score(task, case.metric, kept) / case.scale, sum(values) / len(values))}
