"""VideoComp, ActivityNet and YouCook2 parts, as SToP's evaluation scores them: by multiple choice.

{activitynet,youcook2}_comp_val.json: records with video_id, question, answer, key, query_video/start_time and
query_video/end_time in microseconds (under that name, or as an object query_video); frames come from that range only.
Videos: activitynet_video/v_<id>.{mp4,mkv}, raw_videos/video/<id>.{mp4,mkv,webm}.

The options are read from the question's lines ("A. ...", "(A) ..."), or from a list "options" or "candidates": which of
these the files have was not read, and neither was SToP's wording of the last line.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from jvidprune.errors import quoted
from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import GIVE_OPTION, choice, listing, pointed, split_options
from jvidprune.evals.items import LeftOut

READING = {"stop": "letters"}
ANSWER_TOKENS = 16

_FOLDERS = {"activitynet": "activitynet_video/v_{}", "youcook2": "raw_videos/video/{}"}
_MICROSECONDS = 1e-6


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by part: activitynet, youcook2."""
    for path in find_files(folder, "*_comp_val.json"):
        make = functools.partial(_entry, path.stem.removesuffix("_comp_val"))
        yield from each_row(path, make, "video_id", "question", "answer", "key")


def _entry(part: str, number: int, row: Row) -> list[Entry]:
    listed = row.get("options") or row.get("candidates")
    alone, inside = split_options(row["question"])
    options = [str(option) for option in listing(listed)] if listed else inside
    if not options:
        raise ValueError("has no options in its question, and no list of them")
    asked = "\n".join([row["question"], *([] if inside else pointed(options)), GIVE_OPTION])
    question = choice(f"{part}-{row['key']}-{number}", alone, part, options, row["answer"], asked=asked)
    video = str(row["video_id"])
    place = _FOLDERS.get(part, "{}").format(video)
    return [Entry((place, f"{place}.mp4", video), question, *(_time(row, name) for name in ("start", "end")))]


def _time(row: Row, name: str) -> float:
    """Seconds of the start or end of the range."""
    inner = row.get("query_video")
    found = row.get(f"query_video/{name}_time")
    if found is None and isinstance(inner, Mapping):
        found = inner.get(f"{name}_time")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"has no query_video/{name}_time; its columns are {quoted(', '.join(map(str, row)), 200)}")
    return found * _MICROSECONDS
