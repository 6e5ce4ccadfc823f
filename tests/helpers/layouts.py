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
    # Of the names in videos/misleading, the mixed part's alone is not told by its id.
    place(
        folder, film, "videos/entire/entire_1.mp4", "videos/interleave/interleave_3.mp4", "videos/misleading/mix_3.mp4"
    )


LAYOUTS = {f.__name__: f for f in (videomme, mvbench, egoschema, longvideobench, mlvu, nextqa, eventhallusion)}
LAYOUTS |= {"eventhallusion_descriptions": eventhallusion}
