"""EventHallusion, the yes/no questions (github.com/Stevetich/EventHallusion).

From memory of the repository: questions/{entire,interleave,misleading}_questions.json, each a list of {"id" (also the
name of the video), "questions": [{"question", "answer" ("yes" or "no")}, ...]}; videos in videos/<part>/<id>.mp4. The
detailed-description part needs a judge model and is not read.
"""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.bench.datasets.annotations import find_files, read_rows, require
from jvidprune.bench.datasets.task import AskedQuestion, Entry
from jvidprune.bench.extract import yes_or_no

EXTRACTION = "letters"

_INSTRUCTION = "Please answer yes or no."


def entries(folder: Path) -> Iterator[Entry]:
    """Its questions by part: entire, interleave, misleading."""
    for path in find_files(folder, "*_questions.json"):
        part = path.stem.removesuffix("_questions")
        for row in require(read_rows(path), path, "id", "questions"):
            for number, asked in enumerate(row["questions"]):
                text = asked["question"].strip()
                whole = text if "yes or no" in text.lower() else f"{text} {_INSTRUCTION}"
                answer = yes_or_no(str(asked["answer"]))
                options = ("yes", "no")
                question = AskedQuestion(f"{row['id']}-{number}", text, part, "yes_no", options, answer, asked=whole)
                yield Entry((f"videos/{part}/{row['id']}.mp4", f"{row['id']}.mp4", str(row["id"])), question)
