"""MVBench (OpenGVLab/MVBench).

json/<task>.json, twenty files, each a list of {"video", "question", "candidates", "answer"} where the answer is the
text of a candidate; tasks made from STAR, Charades-STA and TVQA also give "start" and "end" in seconds. Videos lie in a
folder for each source; episodic_reasoning has folders of frames, three a second. The revision that lmms-eval reads has
files that are cut and converted already, in folders of other names (`CONVERTED`): where these are there, they are
looked at whole.

SToP's wording leaves out fine_grained_pose. "official" is from memory of the authors' notebook.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import GIVE_OPTION, bracketed, choice, lettered
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_mvbench", "stop": "letters", "official": "letters"}
ANSWER_TOKENS = 16

SOURCES: dict[str, str] = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Task -> folder of its videos, below video/ or the data folder itself."""

CONVERTED: dict[str, str] = {
    "star/Charades_v1_480": "star/Charades_segment",
    "sta/sta_video": "sta/sta_video_segment",
    "tvqa/frames_fps3_hq": "tvqa/video_fps3_hq_segment",
    "nturgbd": "nturgbd_convert",
    "ssv2_video": "ssv2_video_mp4",
}
"""Folder of the original files -> of those that lmms-eval's revision has instead."""

_LEAD = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by task; where an annotation gives seconds, only that part of the video is looked at."""
    for path in find_files(folder, "json/*.json", *(f"{task}.json" for task in SOURCES)):
        if prompts == "stop" and path.stem == "fine_grained_pose":
            continue
        make = functools.partial(_entry, prompts, path.stem, *_source(folder, path.stem))
        yield from each_row(path, make, "video", "question", "candidates", "answer")


def _source(folder: Path, task: str) -> tuple[str, bool]:
    """The folder of a task's videos, and whether its files are cut."""
    original = SOURCES.get(task, task)
    converted = CONVERTED.get(original, "")

    def is_there(name: str) -> bool:
        return any((folder / above / name).is_dir() for above in ("video", "."))

    if converted and is_there(converted) and not is_there(original):
        return converted, converted.endswith("_segment")
    return original, False


def _entry(prompts: str, task: str, source: str, cut: bool, number: int, row: Row) -> list[Entry]:
    asked = _asked(prompts, row)
    question = choice(f"{task}-{number}", row["question"], task, row["candidates"], str(row["answer"]), asked=asked)
    # Names are those of their source alone: one is in several folders and means another video in each.
    places = (f"video/{source}/{row['video']}", f"{source}/{row['video']}")
    times = (None, None) if cut else (_seconds(row.get("start")), _seconds(row.get("end")))
    return [Entry(places, question, *times)]


def _asked(prompts: str, row: Row) -> str:
    if prompts == "stop":
        return "\n".join([row["question"], *lettered(row["candidates"]), GIVE_OPTION])
    listed = bracketed(row["candidates"])
    if prompts == "official":
        question = f"Question: {row['question']}"
        return "\n".join([_LEAD, question, "Options:", *listed, "Only give the best option.", "Best option:("])
    # The missing spaces and the last line break are lmms-eval's.
    return "\n".join([f"Question:{row['question']}", "Option:", *listed, "Only give the best option.", ""])


def _seconds(value: float | str | None) -> float | None:
    return None if value is None else float(value)
