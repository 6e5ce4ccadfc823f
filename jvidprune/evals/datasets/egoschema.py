"""EgoSchema (lmms-lab/egoschema, and the authors' questions.json with subset_answers.json).

Parquet as lmms-eval's task reads it: question_idx, question, video_idx (name of the file in videos/), option (list of
"A. ...") and answer ("0" to "4"; null outside the subset of 500 with public answers). The authors' JSON, from memory,
is a list of {"q_uid" (also the name of the file), "question", "option 0" ... "option 4"}; answers are a separate
{q_uid: index}. The authors have no wording for models that write.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import DIRECTLY, choice, lettered
from jvidprune.evals.items import LeftOut
from jvidprune.models.checkpoint.folder import read_json

READING = {"lmms_eval": "lmms_egoschema"}
ANSWER_TOKENS = 16


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions; those without a public answer are left out."""
    found = find_files(folder, "Subset/*.parquet", "*.parquet", "questions.json", "*.jsonl")
    answers = {} if found[0].suffix == ".parquet" else _answers(folder)
    for path in found:
        yield from each_row(path, functools.partial(_entry, answers), "question")


def _entry(answers: dict[str, int], number: int, row: Row) -> list[Entry]:
    if "q_uid" in row:
        options = [row[f"option {i}"] for i in range(5) if f"option {i}" in row]
        name, video, answer = row["q_uid"], row["q_uid"], answers.get(row["q_uid"])
    else:
        if lacking := [name for name in ("question_idx", "video_idx", "option") if row.get(name) is None]:
            raise ValueError(f"has no {', '.join(lacking)}; its columns are {quoted(', '.join(map(str, row)), 200)}")
        name, video, options, answer = str(row["question_idx"]), row["video_idx"], row["option"], row.get("answer")
    if answer is None:
        return []
    asked = "\n".join([row["question"], *lettered(options), DIRECTLY])
    question = choice(name, row["question"], "egoschema", options, int(answer), asked=asked)
    return [Entry((f"videos/{video}.mp4", video), question)]


def _answers(folder: Path) -> dict[str, int]:
    for path in sorted(folder.rglob("subset_answers.json")):
        found = read_json(path)
        if isinstance(found, dict):
            return found
        raise JvidpruneError(f"{path} must hold an object of answers by question.")
    raise JvidpruneError(f"questions.json has no answers: put subset_answers.json into {folder}.")
