"""A benchmark as files: one mp4 a clip and one JSON of annotations, for tools that know nothing of this package."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.lmms_task import write_tasks
from jvidprune.procedural.world import Scene
from jvidprune.video.encode import write_mp4


def export(
    task: Procedural,
    folder: str | os.PathLike[str],
    *,
    scale: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a benchmark's clips and questions.

    Args:
      task: what to write.
      folder: gets videos/ID.mp4, one frame a second, and annotations.json: the task's settings, and for each question
        its id, video, category, kind, text, options, answer, prompt as the benchmark itself asks, and the ground truth;
        and lmms_eval/ with the tasks of `lmms_task`.
      scale: pixels a side that each pixel becomes: codecs halve the resolution of colour, and shapes of a few pixels
        lose theirs.
      progress: called with the number of clips done and of all.

    Returns:
      the path of annotations.json, written last.

    Raises:
      JvidpruneError: a scale below 1, or a folder that cannot be written to.
    """
    if scale < 1:
        raise JvidpruneError(f"a pixel becomes at least 1 pixel, not {scale}.")
    target, questions = Path(folder), []
    for i in range(len(task)):
        drawn = task.sample(i)
        name = f"videos/{task[i].id}.mp4"
        write_mp4(target / name, drawn.frames.repeat(scale, 1).repeat(scale, 2), 1.0)
        clip = {"video": name, "scene": _record(drawn.scene)}
        for question in drawn.questions:
            row = {"id": question.id, "category": question.category, "kind": question.kind, "question": question.text}
            row |= {"options": list(question.options), "answer": question.answer}
            questions.append(row | {"prompt": question.prompt()} | clip)
        if progress:
            progress(i + 1, len(task))
    path = target / "annotations.json"
    with atomic_output(path) as part:
        part.write_text(json.dumps({"task": task.fingerprint(), "questions": questions}, indent=1) + "\n", "utf-8")
    write_tasks(target, questions)
    return path


def _record(scene: Scene) -> dict[str, Any]:
    """What happens, in pixels of the clip before scaling."""
    keys = ("colour", "shape", "role", "start", "stop", "direction", "change", "after")
    things = [
        {key: getattr(thing, key) for key in keys}
        | {"radius": round(thing.radius, 2), "centre": np.round(thing.centre, 2).tolist()}
        for thing in scene.things
        if thing.role != "clutter"
    ]
    return {"focus": scene.focus, "template": scene.template, "cuts": list(scene.cuts), "flash": scene.flash} | {
        "things": things
    }
