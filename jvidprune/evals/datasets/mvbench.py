"""MVBench (OpenGVLab/MVBench).

From memory of the dataset card: json/<task>.json, twenty files, each a list of {"video", "question", "candidates",
"answer"} where the answer is the text of a candidate; tasks made from STAR, Charades-STA and TVQA also give "start" and
"end" in seconds. Videos lie in a folder for each source; episodic_reasoning has folders of frames, three a second.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import choice, lettered
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "letters"}
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


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by task; where an annotation gives seconds, only that part of the video is looked at."""
    for path in find_files(folder, "json/*.json", *(f"{task}.json" for task in SOURCES)):
        make = functools.partial(_entry, path.stem)
        yield from each_row(path, make, "video", "question", "candidates", "answer")


def _entry(task: str, number: int, row: Row) -> list[Entry]:
    source, name = SOURCES.get(task, task), f"{task}-{number}"
    asked = "\n".join([row["question"], *lettered(row["candidates"]), "Only give the best option."])
    question = choice(name, row["question"], task, row["candidates"], str(row["answer"]), asked=asked)
    # Names are those of their source alone: one is in several folders and means another video in each.
    places = (f"video/{source}/{row['video']}", f"{source}/{row['video']}")
    return [Entry(places, question, _seconds(row.get("start")), _seconds(row.get("end")))]


def _seconds(value: float | str | None) -> float | None:
    return None if value is None else float(value)
