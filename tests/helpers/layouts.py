"""Small copies of published benchmarks in their layouts, with the films that they are given."""

import json

import numpy as np
from PIL import Image

from jvidprune.video.encode import write_mp4


def place(folder, film, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_mp4(folder / path, film, 6.0)


def write(folder, path, rows):
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    elif target.suffix == ".csv":
        lines = [",".join(map(str, row.values())) for row in rows]
        target.write_text("\n".join([",".join(rows[0]), *lines]))
    elif target.suffix == ".jsonl":
        target.write_text("\n".join(map(json.dumps, rows)))
    else:
        target.write_text(json.dumps(rows))


OPTIONS = ["a cat", "a dog", "a bird", "a fish"]


def videomme(folder, film):
    row = {"video_id": "001", "duration": "short", "videoID": "fFjv93ACGo8", "question_id": "001-1"}
    row |= {"question": "What barks?", "options": [f"{x}. {o}" for x, o in zip("ABCD", OPTIONS, strict=True)]}
    rows = [
        row | {"answer": "B"},
        row | {"question_id": "001-2", "answer": "D"},
        row | {"videoID": "gone", "answer": "A"},
    ]
    write(folder, "videomme/test-00000-of-00001.parquet", rows)
    place(folder, film, "data/fFjv93ACGo8.mp4")


def mvbench(folder, film):
    row = {"video": "a.mp4", "question": "What barks?", "candidates": OPTIONS, "answer": "a dog"}
    write(folder, "json/action_sequence.json", [row | {"start": 0.5, "end": 1.5}, row | {"answer": "a fish"}])
    write(
        folder, "json/episodic_reasoning.json", [row | {"video": "show", "start": 0, "end": 2}, row | {"video": "no"}]
    )
    write(folder, "json/object_shuffle.json", [row | {"video": "b.mp4"}])
    # Another video of the name that object_shuffle asks for in perception/videos.
    place(folder, film, "video/star/Charades_v1_480/a.mp4", "video/clevrer/video_validation/b.mp4")
    frames = folder / "video/tvqa/frames_fps3_hq/show"
    frames.mkdir(parents=True)
    for i in range(9):
        Image.fromarray(np.full((20, 20, 3), 10 * i, np.uint8)).save(frames / f"{i:05d}.png")


def egoschema(folder, film):
    row = {"question_idx": "7", "question": "What barks?", "video_idx": "q7", "option": [*OPTIONS, "nobody"]}
    rows = [row | {"answer": "1"}, row | {"question_idx": "8", "answer": None}]
    write(folder, "Subset/test-00000-of-00001.parquet", [*rows, row | {"video_idx": "gone", "answer": "0"}])
    place(folder, film, "videos/q7.mp4")


def longvideobench(folder, film):
    row = {"id": "v_0", "video_path": "v.mp4", "question": "What barks?", "candidates": OPTIONS, "correct_choice": 1}
    rows = [row | {"duration_group": 15}, row | {"id": "v_1", "video_path": "gone.mp4", "duration_group": 3600}]
    write(folder, "lvb_val.json", rows)
    place(folder, film, "videos/v.mp4")


def mlvu(folder, film):
    row = {"video": "needle_1.mp4", "question": "What barks?", "candidates": OPTIONS, "answer": "a dog"}
    row |= {"question_type": "findNeedle"}
    write(folder, "json/2_needle.json", [row, row | {"video": "gone.mp4"}])
    place(folder, film, "video/2_needle/needle_1.mp4")


def nextqa(folder, film):
    row = {"video": 4010069381, "frame_count": 12, "width": 64, "height": 48, "question": "what barks", "answer": 1}
    row |= {"qid": 6, "type": "TN"} | {f"a{i}": o for i, o in enumerate([*OPTIONS, "nobody"])}
    write(folder, "MC/test-00000-of-00001.parquet", [row, row | {"video": 1, "type": "CW"}])
    place(folder, film, "NExTVideo/4010069381.mp4")


def eventhallusion(folder, film):
    asked = [{"question": "Did it bark?", "answer": "Yes."}, {"question": "Did it fly?", "answer": "No."}]
    write(folder, "questions/entire_questions.json", [{"id": "entire_1", "questions": asked}])
    write(folder, "questions/misleading_questions.json", [{"id": "gone", "questions": asked}])
    write(folder, "questions/mix_questions.json", [{"id": "mix_3", "questions": asked[1:]}])
    # Videos of the mixed part lie elsewhere than its ids say.
    place(
        folder, film, "videos/entire/entire_1.mp4", "videos/interleave/interleave_3.mp4", "videos/misleading/mix_3.mp4"
    )


def videomme_w_subtitle(folder, film):
    videomme(folder, film)
    (folder / "subtitle").mkdir()
    # The film lasts two seconds; the second line is shown at none of its frames, the third is of another kind.
    shown = ["00:00:00,000 --> 00:00:00,900", "00:00:00,900 --> 00:00:00,950", "00:00:01,000 --> 00:00:01,500"]
    shown += ["00:00:01,000 --> 00:00:02,000"]
    said = ["Woof,", "Miaow.", "plain", "says the dog."]
    lines = [f'<font color="white" size=".72c">{text}</font>' if text != "plain" else text for text in said]
    cues = [f"{i}\n{time}\n{text}\n" for i, (time, text) in enumerate(zip(shown, lines, strict=True), 1)]
    (folder / "subtitle/fFjv93ACGo8.srt").write_text("\n".join(cues))


def listed(shape):
    return "\n".join(["What barks?", *(shape.format(x, o) for x, o in zip("ABCD", OPTIONS, strict=True))])


def videocomp(folder, film):
    row = {"video_id": "ab", "question": listed("{}. {}"), "answer": "B", "key": "k1"}
    flat = {"query_video/start_time": 500_000, "query_video/end_time": 1_500_000}
    write(folder, "activitynet_comp_val.json", [row | flat, row | flat | {"video_id": "gone"}])
    nested = {"query_video": {"start_time": 0, "end_time": 1_000_000.0}, "options": OPTIONS, "answer": "a fish"}
    write(folder, "youcook2_comp_val.json", [row | nested | {"question": "What swims?", "video_id": "cd"}])
    place(folder, film, "activitynet_video/v_ab.mp4", "raw_videos/video/cd.mp4")


def charades_timelens(folder, film):
    known = {"duration": 2.0, "spans": [[0.5, 1.5], [[1.0, 2.0]]], "queries": ["a dog barks", "it sleeps"]}
    gone = {"duration": 9.0, "spans": [[1, 2]], "queries": ["a cat"]}
    write(folder, "charades-timelens.json", {"AB": known, "gone": gone})
    place(folder, film, "videos/AB.mp4")


def activitynet_timelens(folder, film):
    row = {"video_path": "activitynet/v_ab.mp4", "query": "a dog barks", "span": "[[0.5, 1.5]]"}
    rows = [row, row | {"query": "it sleeps", "span": "[[1, 2]]"}, row | {"video_path": "activitynet/gone.mp4"}]
    write(folder, "data/activitynet-00000-of-00001.parquet", rows)
    place(folder, film, "activitynet/v_ab.mp4")


def vcgbench(folder, film):
    row = {"video_name": "v_1", "question": "What barks?", "answer": "A dog."}
    write(folder, "Generic/test-00000-of-00001.parquet", [row, row | {"video_name": "gone"}])
    write(folder, "Temporal/test-00000-of-00001.parquet", [row | {"question": "When?", "answer": "At the end."}])
    two = {"video_name": "v_1", "question_1": "Who?", "question_2": "None", "answer": "The dog."}
    rows = [two, two | {"question_1": "None", "question_2": "Which animal?"}]
    write(folder, "Consistency/test-00000-of-00001.parquet", rows)
    place(folder, film, "Test_Videos/v_1.mp4")


def tempcompass(folder, film):
    row = {"video_id": "1", "question": listed("{}. {}"), "answer": "B. a dog", "dim": "action"}
    write(folder, "multi-choice/test-00000-of-00001.parquet", [row, row | {"video_id": "gone"}])
    said = {"question": "Does it bark?", "answer": "yes", "dim": "order"}
    write(folder, "yes_no/test-00000-of-00001.parquet", [row | said])
    captions = "Which caption matches?\nSentence A: A cat barks.\nSentence B: A dog barks."
    matched = {"question": captions, "answer": "Sentence B: A dog barks.", "dim": "speed"}
    write(folder, "caption_matching/test-00000-of-00001.parquet", [row | matched])
    place(folder, film, "videos/1.mp4")


def tempcompass_captioning(folder, film):
    row = {"video_id": "1", "question": "Describe the video.", "answer": "none", "dim": "action"}
    row |= {"mc_question": listed("{}. {}"), "mc_answer": "B. a dog"}
    write(folder, "captioning/test-00000-of-00001.parquet", [row, row | {"video_id": "gone"}])
    place(folder, film, "videos/1.mp4")


def tomato(folder, film):
    row = {"id": "1", "question": "What barks?", "options": OPTIONS, "answer": 1, "reason_type": "count"}
    row |= {"demonstration_type": "human", "video_path": "videos/human/0001.mp4"}
    rows = [row, row | {"id": "2", "video_path": "videos/human/gone.mp4"}]
    write(folder, "data/test-00000-of-00001.parquet", rows)
    place(folder, film, "videos/human/0001.mp4")


def motionbench(folder, film):
    qa = [{"uid": "u1", "question": listed("{}. {}"), "answer": "B"}, {"uid": "u2", "question": "?", "answer": "NA"}]
    row = {"key": "k", "question_type": "Motion Recognition", "video_type": "x", "video_path": "m.mp4", "qa": qa}
    write(folder, "video_info.meta.jsonl", [row, row | {"key": "l", "video_path": "gone.mp4"}])
    place(folder, film, "public-dataset/m.mp4")


def perceptiontest(folder, film):
    row = {"video_name": "video_1", "question": "What barks?", "question_id": 3, "options": OPTIONS[:3], "answer_id": 1}
    row |= {"area": "physics", "reasoning": "descriptive", "tag": ["motion"]}
    rows = [row, row | {"video_name": "gone"}]
    write(folder, "mc_question_val/validation-00000-of-00001.parquet", rows)
    place(folder, film, "videos/video_1.mp4")


def lvbench(folder, film):
    row = {"video_path": "ab.mp4", "question": listed("({}) {}"), "answer": "B", "uid": "1", "type": "cartoon"}
    write(folder, "data/train-00000-of-00001.parquet", [row, row | {"uid": "2", "video_path": "gone.mp4"}])
    place(folder, film, "ab.mp4")


def videoevalpro(folder, film):
    row = {"video": "a.mp4", "question": "What barks?", "options": listed("{}. {}").splitlines()[1:], "answer": "B"}
    row |= {"answer_text": "A dog.", "qa_type": "Local Perception"}
    write(folder, "data/test-00000-of-00001.parquet", [row, row | {"video": "gone.mp4"}])
    place(folder, film, "videos_filtered/a.mp4")


_FUNCTIONS = (
    *(videomme, videomme_w_subtitle, mvbench, egoschema, longvideobench, mlvu, nextqa, eventhallusion, videocomp),
    *(charades_timelens, activitynet_timelens, vcgbench, tempcompass, tempcompass_captioning, tomato, motionbench),
    *(perceptiontest, lvbench, videoevalpro),
)
LAYOUTS = {function.__name__: function for function in _FUNCTIONS}
LAYOUTS |= {"eventhallusion_descriptions": eventhallusion, "videoevalpro_open": videoevalpro}
