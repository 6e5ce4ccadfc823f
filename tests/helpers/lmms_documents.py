"""Small generated annotations of the benchmarks that lmms-eval has tasks for, in the layout that it caches."""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from jvidprune.evals.items import LETTERS

Row = dict[str, Any]

TEXTS = (
    "a red cat",
    "A. Lincoln",
    "the dog barks",
    "Nobody",
    "3.5 metres",
    "B, or not",
    "café (old)",
    "two\u00a0birds",
)
QUESTIONS = ("What barks?", "Which comes first: A or B?", " Who is it? ", "How many\nbirds (in all)?", "Why, then?")


class Case(NamedTuple):
    """A task of lmms-eval and what it is compared with.

    Attributes:
      task: yaml of the task below lmms-eval's tasks.
      ours: name for `open_dataset`.
      folder: of the copy, below HF_HOME.
      file: annotation file.
      rows: of the file, from a generator of random numbers.
      video: names of a row's film, below the folder, given the row.
      metric: that lmms-eval reports.
      scale: of lmms-eval's number over a share.
      said: letter that lmms-eval read, from what it keeps of an answer; None where it keeps none.
      right: whether lmms-eval counts an answer, from the same.
      only: categories of ours that the task is about; all if empty.
      mean: whether the number is the mean over categories.
    """

    task: str
    ours: str
    folder: str
    file: str
    rows: Callable[[random.Random], list[Row]]
    video: Callable[[Row], str]
    metric: str
    scale: float
    right: Callable[[Any], bool]
    said: Callable[[Any], str] | None = None
    only: tuple[str, ...] = ()
    mean: bool = False


def options(rng: random.Random, count: int) -> list[str]:
    return rng.sample(TEXTS, count)


def question(rng: random.Random) -> str:
    return rng.choice(QUESTIONS)


def lined(shape: str, texts: list[str]) -> str:
    return "\n".join(shape.format(letter, text) for letter, text in zip(LETTERS, texts, strict=False))


def _videomme(rng: random.Random) -> list[Row]:
    known = {"domain": "Knowledge", "sub_category": "Astronomy", "task_type": "OCR Problems", "video_id": "001"}
    return [
        known
        | {"duration": ("short", "medium", "long")[i % 3], "videoID": f"v{i // 3}", "question_id": f"{i // 3}-{i % 3}"}
        | {"question": question(rng), "options": lined("{}. {}", options(rng, 4)).split("\n")}
        | {"answer": rng.choice("ABCD")}
        for i in range(9)
    ]


def _mvbench(rng: random.Random) -> list[Row]:
    rows = []
    for i, count in enumerate((2, 3, 4, 5)):
        texts = options(rng, count)
        rows.append({"video": f"m{i}.mp4", "question": question(rng), "candidates": texts, "answer": rng.choice(texts)})
    return rows


def _egoschema(rng: random.Random) -> list[Row]:
    return [
        {"question_idx": str(i), "question": question(rng), "video_idx": f"e{i}", "answer": str(rng.randrange(5))}
        | {"option": lined("{}. {}", options(rng, 5)).split("\n")}
        for i in range(6)
    ]


def _longvideobench(rng: random.Random) -> list[Row]:
    rows = []
    for i, count in enumerate((2, 3, 4, 5, 5)):
        texts = [*options(rng, count), *["N/A"] * (5 - count)]
        row = {"id": f"l{i}", "video_path": f"l{i}.mp4", "question": question(rng)}
        row |= {"correct_choice": rng.randrange(count), "duration_group": (15, 60, 600, 3600)[i % 4]}
        rows.append(row | {"question_category": "S2E"} | {f"option{j}": text for j, text in enumerate(texts)})
    return rows


def _mlvu(rng: random.Random) -> list[Row]:
    tasks = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
    rows = []
    for i, task in enumerate((*tasks, "count", "ego")):
        texts = options(rng, 4)
        asked = f"{question(rng)}\n{lined('({}) {}', texts)}"
        rows.append({"video_name": f"w{i}.mp4", "question": asked, "task_type": task, "answer": rng.choice("ABCD")})
        rows[-1]["candidates"] = texts
    return rows


def _nextqa(rng: random.Random) -> list[Row]:
    return [
        {
            "video": 100 + i,
            "question": question(rng),
            "answer": rng.randrange(5),
            "qid": i,
            "type": ("CW", "TN", "DO")[i % 3],
        }
        | {f"a{j}": text for j, text in enumerate(options(rng, 5))}
        for i in range(6)
    ]


def _tempcompass(part: str) -> Callable[[random.Random], list[Row]]:
    def rows(rng: random.Random) -> list[Row]:
        found = []
        for i, dim in enumerate(("action", "speed", "direction", "order", "attribute_change", "action")):
            row = {"video_id": f"t{i}", "dim": dim}
            if part == "yes_no":
                found.append(row | {"question": question(rng).strip(), "answer": rng.choice(["yes", "no"])})
                continue
            kind = rng.choice(["Sentence", "Caption", "Option"])
            names = [f"{kind} {name}" for name in ("12" if kind == "Option" else "AB")]
            lines = [f"{name}: {text}" for name, text in zip(names, options(rng, 2), strict=True)]
            if part == "multi-choice":
                lines = lined("{}. {}", options(rng, rng.choice([2, 3, 4]))).split("\n")
            asked = "\n".join([question(rng).strip().replace("\n", " "), *lines])
            found.append(row | {"question": asked, "answer": rng.choice(lines)})
        return found

    return rows


def _tomato(rng: random.Random) -> list[Row]:
    rows = []
    for i, count in enumerate((2, 3, 4, 5, 6)):
        row = {"id": f"{i}", "question": question(rng), "options": options(rng, count), "answer": rng.randrange(count)}
        row |= {"reason_type": ("count", "direction")[i % 2], "demonstration_type": "human"}
        rows.append(row | {"video_path": f"videos/human/{i}.mp4"})
    return rows


def _motionbench(rng: random.Random) -> list[Row]:
    rows = []
    for i, kind in enumerate(("Action Order", "Repetition Count", "Camera Motion")):
        qa = []
        for j, count in enumerate((2, 4, 6)):
            asked = f"{question(rng)}\n{lined(rng.choice(['{}. {}', '{}) {}', ' {}:  {}']), options(rng, count))}\n"
            qa.append({"uid": f"{i}-{j}", "question": asked, "answer": rng.choice(LETTERS[:count])})
        qa.append({"uid": f"{i}-na", "question": "Hidden?\nA. a\nB. b", "answer": "NA"})
        rows.append({"key": f"k{i}", "question_type": kind, "video_type": "x", "video_path": f"b{i}.mp4", "qa": qa})
    return rows


def _perceptiontest(rng: random.Random) -> list[Row]:
    return [
        {"video_name": f"p{i}", "question": question(rng), "question_id": i, "options": options(rng, 3)}
        | {"answer_id": rng.randrange(3), "area": "physics", "reasoning": "descriptive", "tag": ["motion"]}
        for i in range(6)
    ]


def _lvbench(rng: random.Random) -> list[Row]:
    return [
        {"video_path": f"z{i}.mp4", "answer": rng.choice("ABCD")}
        | {"question": f"{question(rng)}\n{lined('({}) {}', options(rng, 4))}"}
        for i in range(6)
    ]


def _videoevalpro(rng: random.Random) -> list[Row]:
    kinds = ("Local Perception", "Local Reasoning", "Holistic Perception", "Holistic Reasoning")
    return [
        {"video": f"x{i}.mp4", "question": question(rng), "qa_type": kinds[i % 4], "answer_text": "x"}
        | {"options": lined("{}. {}", options(rng, 3 + i % 3)).split("\n"), "answer": rng.choice("ABC")}
        for i in range(8)
    ]


def _timelens(rng: random.Random) -> list[Row]:
    spans = [sorted(rng.sample(range(60), 2)) for _ in range(6)]
    texts = ("a dog barks", "it's late", "a 'quoted' word", "10 birds - or 20", "they leave", "nothing")
    return [
        {"video_path": f"c{i}.mp4", "query": text, "span": json.dumps([[a / 2, b / 2]])}
        for i, (text, (a, b)) in enumerate(zip(texts, spans, strict=True))
    ]


def _vcgbench(rng: random.Random) -> list[Row]:
    return [{"video_name": f"g{i}", "question": question(rng), "answer": "A dog."} for i in range(3)]


def _consistency(rng: random.Random) -> list[Row]:
    asked = [(question(rng), "None"), ("None", question(rng))]
    return [{"video_name": "g0", "question_1": one, "question_2": two, "answer": "A dog."} for one, two in asked]


def _mvbench_case(task: str, source: str) -> Case:
    score = "mvbench_accuracy"
    return Case(
        *(f"mvbench/mvbench_{task}.yaml", "mvbench", "mvbench_video", f"json/{task}.json", _mvbench),
        *(lambda row: f"{source}/{row['video']}", score, 100, lambda kept: kept["score"] == 1),
        only=(task,),
    )


def _tempcompass_case(part: str, task: str) -> Case:
    file = f"{part}/test-00000-of-00001.parquet"
    return Case(
        *(f"tempcompass/tempcompass_{task}.yaml", "tempcompass", "tempcompass", file, _tempcompass(part)),
        *(lambda row: f"videos/{row['video_id']}.mp4", "avg_accuracy", 100, lambda kept: kept["rating"] == 1),
        only=(part,),
    )


def _timelens_case(name: str) -> Case:
    file = f"data/{name}-00000-of-00001.parquet"
    return Case(
        *(f"timelens/timelens_{name}.yaml", f"{name}_timelens", "timelens", file, _timelens),
        *(lambda row: row["video_path"], "timelens_mIOU", 100, lambda kept: False),
    )


def _vcgbench_case(part: str) -> Case:
    rows = _consistency if part == "consistency" else _vcgbench
    name = "gen" if part == "generic" else part
    metric = {"generic": "gpt_eval_score_correctness"}.get(part, f"gpt_eval_score_{part}")
    return Case(
        *(f"videochatgpt/videochatgpt_{part}.yaml", "vcgbench", "videochatgpt", f"{part.title()}/test.parquet", rows),
        *(lambda row: f"Test_Videos/{row['video_name']}.mp4", metric, 1, lambda kept: bool(name)),
        only=(part.title(),),
    )


def _equal(kept: Any) -> bool:
    return kept["pred_answer"] == kept["answer"]


def _pred(kept: Any) -> str:
    return kept["pred_answer"]


SOURCES = {
    "object_interaction": "star/Charades_segment",
    "action_localization": "sta/sta_video_segment",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "moving_direction": "clevrer/video_validation",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "scene_transition": "scene_qa/video",
    "action_antonym": "ssv2_video_mp4",
    "unexpected_action": "FunQA_test/test",
}
"""A task of MVBench for each folder of videos in lmms-eval's copy."""

TEST = "test-00000-of-00001.parquet"
CASES = {
    "videomme": Case(
        *("videomme/videomme.yaml", "videomme", "videomme", f"videomme/{TEST}", _videomme),
        *(lambda row: f"data/{row['videoID']}.mp4", "videomme_perception_score", 100, _equal, _pred),
    ),
    "videomme_w_subtitle": Case(
        *("videomme/videomme_w_subtitle.yaml", "videomme_w_subtitle", "videomme", f"videomme/{TEST}", _videomme),
        *(lambda row: f"data/{row['videoID']}.mp4", "videomme_perception_score", 100, _equal, _pred),
    ),
    **{f"mvbench_{task}": _mvbench_case(task, source) for task, source in SOURCES.items()},
    "egoschema_subset": Case(
        *("egoschema/egoschema_subset.yaml", "egoschema", "egoschema", f"Subset/{TEST}", _egoschema),
        *(lambda row: f"videos/{row['video_idx']}.mp4", "score", 1),
        lambda kept: str(kept["ground_truth"]) == str(kept["pred"]),
        lambda kept: LETTERS[kept["pred"]] if kept["pred"] >= 0 else "",
    ),
    "longvideobench_val_v": Case(
        *("longvideobench/longvideobench_val_v.yaml", "longvideobench", "datasets/longvideobench"),
        *("validation-00000-of-00001.parquet", _longvideobench),
        *(lambda row: f"videos/{row['video_path']}", "lvb_acc", 1),
        lambda kept: kept["parsed_pred"] == kept["answer"],
        lambda kept: kept["parsed_pred"].strip("?"),
    ),
    "mlvu_dev": Case(
        *("mlvu/mlvu_dev.yaml", "mlvu", "mlvu", f"data/{TEST}", _mlvu, lambda row: row["video_name"]),
        *("mlvu_percetion_score", 100, _equal, _pred),
        mean=True,
    ),
    "nextqa_mc_test": Case(
        *("nextqa/nextqa_mc_test.yaml", "nextqa", "nextqa", f"MC/{TEST}", _nextqa),
        *(lambda row: f"NExTVideo/{row['video']}.mp4", "exact_match", 1, bool),
    ),
    "tempcompass_multi_choice": _tempcompass_case("multi-choice", "mc"),
    "tempcompass_yes_no": _tempcompass_case("yes_no", "yes_no"),
    "tempcompass_caption_matching": _tempcompass_case("caption_matching", "caption_matching"),
    "tomato": Case(
        *("tomato/tomato.yaml", "tomato", "TOMATO", f"data/{TEST}", _tomato, lambda row: row["video_path"]),
        *("tomato_score", 1, lambda kept: kept["score"] == 1),
    ),
    "motionbench_full": Case(
        *("motionbench/motionbench_full.yaml", "motionbench", "motionbench", "video_info.meta.jsonl", _motionbench),
        *(lambda row: f"videos/{row['video_path']}", "motionbench_acc", 1, lambda kept: kept["score"] == 1),
    ),
    "perceptiontest_val_mc": Case(
        *("perceptiontest/val/perceptiontest_mc.yaml", "perceptiontest", "perceptiontest_val"),
        *("mc_question_val/validation-00000-of-00001.parquet", _perceptiontest),
        *(lambda row: f"videos/{row['video_name']}.mp4", "accuracy", 1, lambda kept: kept["correct"] == 1),
        lambda kept: LETTERS[kept["pred_id"]] if kept["pred_id"] >= 0 else "",
    ),
    "lvbench": Case(
        *("lvbench/lvbench.yaml", "lvbench", "lvbench", "data/train-00000-of-00001.parquet", _lvbench),
        *(lambda row: row["video_path"], "lvbench_score", 1, bool),
    ),
    "videoevalpro_mcq": Case(
        *("videoevalpro/videoevalpro_mcq.yaml", "videoevalpro", "videoevalpro", f"data/{TEST}", _videoevalpro),
        *(lambda row: f"videos_filtered/{row['video']}", "videoevalpro_mcq_score", 1, lambda kept: kept["correct"]),
        lambda kept: kept["parsed_prediction"],
    ),
    "videoevalpro": Case(
        *("videoevalpro/videoevalpro.yaml", "videoevalpro_open", "videoevalpro", f"data/{TEST}", _videoevalpro),
        *(lambda row: f"videos_filtered/{row['video']}", "videoevalpro_score", 1, lambda kept: False),
    ),
    "timelens_charades": _timelens_case("charades"),
    "timelens_activitynet": _timelens_case("activitynet"),
    "videochatgpt_gen": _vcgbench_case("generic"),
    "videochatgpt_temporal": _vcgbench_case("temporal"),
    "videochatgpt_consistency": _vcgbench_case("consistency"),
}
"""lmms-eval's name of a task -> what is compared."""
