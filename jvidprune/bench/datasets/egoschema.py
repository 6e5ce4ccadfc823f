"""EgoSchema (lmms-lab/egoschema, and the authors' questions.json with subset_answers.json).

From memory of the dataset cards: parquet with question_idx, question, video_idx (name of the file), option (list of
"A. ...") and answer ("0" to "4"; null outside the subset of 500 with public answers). The authors' JSON is a list of
{"q_uid" (also the name of the file), "question", "option 0" ... "option 4"}; answers are a separate {q_uid: index}.
"""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.bench.datasets.annotations import Row, find_files, read_rows, require
from jvidprune.bench.datasets.task import Entry
from jvidprune.bench.datasets.wording import DIRECTLY, choice, lettered
from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint import read_json

EXTRACTION = "letters"


def entries(folder: Path) -> Iterator[Entry]:
    """Its questions; those without a public answer are left out."""
    found = find_files(folder, "Subset/*.parquet", "*.parquet", "questions.json", "*.jsonl")
    answers = {} if found[0].suffix == ".parquet" else _answers(folder)
    for path in found:
        for row in read_rows(path):
            name, video, options, answer = _parts(row, path, answers)
            if answer is not None:
                asked = "\n".join([row["question"], *lettered(options), DIRECTLY])
                question = choice(name, row["question"], "egoschema", options, int(answer), asked=asked)
                yield Entry((f"videos/{video}.mp4", video), question)


def _parts(row: Row, path: Path, answers: dict[str, int]) -> tuple[str, str, list[str], int | str | None]:
    if "q_uid" in row:
        options = [row[f"option {i}"] for i in range(5) if f"option {i}" in row]
        return row["q_uid"], row["q_uid"], options, answers.get(row["q_uid"])
    row = next(require([row], path, "question_idx", "video_idx", "question", "option"))
    return str(row["question_idx"]), row["video_idx"], list(row["option"]), row.get("answer")


def _answers(folder: Path) -> dict[str, int]:
    for path in sorted(folder.rglob("subset_answers.json")):
        return read_json(path)
    raise JvidpruneError(f"questions.json has no answers: put subset_answers.json into {folder}.")
