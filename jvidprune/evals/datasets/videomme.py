"""VideoMME (lmms-lab/Video-MME), without subtitles and with them.

Parquet as lmms-eval's tasks read it: one row a question with videoID (the name of the file, data/<videoID>.mp4),
duration (short, medium, long), question_id, question, options (list of "A. ...") and answer (a letter); subtitles in
subtitle/<videoID>.srt.

With subtitles the lines that are shown at 32 frames of the video stand before the question, whatever frames the model
sees; their order is that of lmms-eval's set of numbers, and a line that is shown at no such frame is not given.
"official" is the wording that the benchmark's authors ask for, as lmms-eval's task quotes it; SToP's was not read
whole, and has the same lead here.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.videos import VideoIndex
from jvidprune.evals.datasets.wording import BEST_ANSWER, DIRECTLY, choice, lettered
from jvidprune.evals.items import LeftOut
from jvidprune.video.decode import probe

READING = {"lmms_eval": "lmms_first_four", "stop": "letters", "official": "first_letter"}
ANSWER_TOKENS = 16

_LEAD = (
    "Select the best answer to the following multiple-choice question based on the video{}. Respond with only the "
    "letter (A, B, C, or D) of the correct option."
)
_SUBTITLES = "This video's subtitles are listed below:"
_SHOWN = re.compile(r'<font color="white" size=".72c">(.*?)</font>')
_FRAMES = 32
"""Of a video at which subtitles are looked for."""


def entries(folder: Path, prompts: str, part: Literal["", "subtitles"] = "") -> Iterator[Entry | LeftOut]:
    """Its questions, by length of the video."""
    subtitles = functools.cache(functools.partial(_subtitles, folder, VideoIndex(folder))) if part else None

    def entry(number: int, row: Row) -> list[Entry]:
        options, videos = lettered(row["options"]), (f"data/{row['videoID']}.mp4", row["videoID"])
        above = [] if subtitles is None else [f"{_SUBTITLES} ", subtitles(videos)]
        asked = "\n".join([*above, *_asked(prompts, part == "subtitles", row["question"], options)])
        length = str(row.get("duration") or "")
        texts = row["question"], length or "all lengths"
        question = choice(str(row["question_id"]), *texts, options, row["answer"], asked=asked, length=length)
        return [Entry(videos, question)]

    for path in find_files(folder, "test*.parquet", "*.parquet", "*.json", "*.jsonl"):
        yield from each_row(path, entry, "videoID", "question_id", "question", "options", "answer")


def _asked(prompts: str, subtitled: bool, text: str, options: list[str]) -> list[str]:
    lead = _LEAD.format(" and the subtitles" if subtitled or prompts == "lmms_eval" else "")
    # Without subtitles lmms-eval asks for the letter after an empty line.
    last = ["", DIRECTLY] if prompts == "lmms_eval" and not subtitled else [BEST_ANSWER]
    return [lead, text, *options, *last]


def _subtitles(folder: Path, index: VideoIndex, videos: tuple[str, ...]) -> str:
    """The lines of a video's subtitles that are shown at `_FRAMES` of its frames."""
    path, video = folder / "subtitle" / f"{videos[-1]}.srt", index.find(videos)
    if video is None or not path.is_file():
        return "No subtitles available"
    found = probe(video)
    frames = np.linspace(0, found.frames - 1, _FRAMES, dtype=int).tolist()
    cues = _cues(path.read_text(encoding="utf8"), found.fps)
    # A set's own order, which is lmms-eval's.
    shown = list({number for frame in frames for number, (start, end, _) in enumerate(cues) if start <= frame < end})
    texts = (_SHOWN.search(cues[number][2]) for number in shown)
    return "\n".join(text.group(1) for text in texts if text)


def _cues(text: str, fps: float) -> list[tuple[int, int, str]]:
    """First frame, frame behind the last, and text of every subtitle; of two at the same times the later one counts."""
    cues: dict[tuple[float, float], str] = {}
    for section in text.split("\n\n"):
        lines = section.split("\n")
        if section.strip() and len(lines) >= 3:
            start, end = (_seconds(time) for time in lines[1].split(" --> "))
            cues[start, end] = " ".join(lines[2:])
    return [(int(start * fps), int(end * fps), text) for (start, end), text in cues.items()]


def _seconds(time: str) -> float:
    hours, minutes, rest = time.split(":")
    seconds, thousandths = rest.split(",")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(thousandths) / 1000
