"""TempCompass (lmms-lab/TempCompass): multiple choice, yes/no, caption matching, and captions for a judge.

Parquet as lmms-eval's tasks read it, in a folder for each part (multi-choice, yes_no, caption_matching, captioning):
video_id (the name of the file in videos/), question with its options in lines, answer, dim (action, direction, speed,
order, attribute_change); captioning also has mc_question and mc_answer, which a judge answers from the caption.

lmms-eval asks GPT about answers that its rules cannot read: here they are wrong, so that scores are a lower bound.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jvidprune.evals.datasets.annotations import Row, each_row, find_parts
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import choice, split_options
from jvidprune.evals.items import LETTERS, LeftOut

READING = {"lmms_eval": "lmms_tempcompass"}
ANSWER_TOKENS = {"": 16, "captioning": 512}

_DIRECTLY = "Please directly give the best option:"
_LAST = {"multi-choice": _DIRECTLY, "yes_no": "Please answer yes or no:", "caption_matching": _DIRECTLY}
_NAMED = re.compile(r"(?:Sentence|Option|Caption) \w+: ")


def entries(folder: Path, prompts: str, part: Literal["", "captioning"] = "") -> Iterator[Entry | LeftOut]:
    """Its questions by part; the dimension is named in the question's id."""
    wanted = [part] if part else list(_LAST)
    shapes = ("{}/*.parquet", "{}*.parquet", "{}.json")
    for name, paths in find_parts(folder, {name: [shape.format(name) for shape in shapes] for name in wanted}):
        for shard, path in enumerate(paths):
            make = functools.partial(_entry, name, f"{shard}." if shard else "")
            yield from each_row(path, make, "video_id", "question", "answer", "dim")


def _entry(part: str, shard: str, number: int, row: Row) -> list[Entry]:
    text, name = row["question"], f"{part}-{shard}{number}-{row['dim']}"
    if part == "captioning":
        reference = f"{row['mc_question']}\nAnswer: {row['mc_answer']}"
        question = AskedQuestion(name, text, str(row["dim"]), "open", (), reference, "tempcompass_captioning", text)
    else:
        asked = f"{text}\n{_LAST[part]}"
        if part == "yes_no":
            question = AskedQuestion(name, text, part, "yes_no", ("yes", "no"), row["answer"], asked=asked)
        elif part == "caption_matching":
            question = _matching(name, text, row["answer"], asked)
        else:
            alone, options = split_options(text)
            question = choice(name, alone, part, options, row["answer"], asked=asked)
    return [Entry((f"videos/{row['video_id']}.mp4", str(row["video_id"])), question)]


def _matching(name: str, text: str, answer: str, asked: str) -> AskedQuestion:
    """A choice among captions with names of their own ("Sentence A: ..."), which stay on them: answers give these."""
    alone, *lines = text.split("\n")
    if not lines or not all(_NAMED.match(line) for line in lines):
        raise ValueError("its lines are no captions such as 'Sentence A: ...'")
    if answer not in lines:
        raise ValueError(f"the answer {answer!r} is none of its captions")
    letter = LETTERS[lines.index(answer)]
    return AskedQuestion(name, alone, "caption_matching", "choice", tuple(lines), letter, asked=asked)
