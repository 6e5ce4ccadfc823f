"""Generated clips with a question each, of kinds that a model was measured to answer above chance."""

import dataclasses
from pathlib import Path

from jvidprune.evals.items import LMMS_POST_PROMPTS, POST_PROMPTS, Question
from jvidprune.evals.tasks import MEASURED, answerable_pairs
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.procedural.benchmark import in_setting
from jvidprune.video.encode import write_mp4

SCALE = 4
"""Pixels a side that each pixel of a clip becomes: codecs halve the resolution of colour."""

_SEARCHED = 200


@dataclasses.dataclass(frozen=True)
class PageExample:
    """A clip to try.

    Attributes:
      path: the video file.
      prompt: what to ask.
      answer: what is right, in words.
    """

    path: Path
    prompt: str
    answer: str


def write_examples(folder: Path, llm: VideoLLM, *, embedded: bool, count: int = 5) -> list[PageExample]:
    """Writes clips of the held-out split as mp4 files, one of each category, those with short questions first.

    Args:
      folder: where to.
      llm: that is asked, in the setting of the benchmark that its folder declares; where it does not say what it
        answers above chance, this is taken from the embedded model.
      embedded: the embedded model is asked, in the few words it knows; other models are asked as in lmms-eval.
      count: most examples.
    """
    # Files have the size of the setting, whatever the tower reads: they are scaled up already.
    task = in_setting(llm.settings.benchmark, "test", _SEARCHED)
    measured = llm.loaded.folder / MEASURED
    known = set(answerable_pairs(llm, measured if measured.exists() else EMBEDDED / MEASURED))
    chosen: dict[str, tuple[int, Question]] = {}
    for index in range(_SEARCHED):
        _, questions = task.scene(index)
        first = questions[0]
        if (first.category, first.kind) not in known:
            continue
        other = chosen.get(first.category)
        if other is None or (other[1].kind == "choice" and first.kind != "choice"):
            chosen[first.category] = (index, first)
    picked = sorted(chosen.values(), key=lambda pair: (pair[1].kind == "choice", pair[0]))[:count]
    post = POST_PROMPTS if embedded else LMMS_POST_PROMPTS
    examples = []
    for index, question in picked:
        frames = task.clip(index).frames.repeat(SCALE, 1).repeat(SCALE, 2)
        path = write_mp4(folder / f"{question.category}-{index}.mp4", frames, 1.0)
        spelled = f"{question.answer} ({question.content})" if question.kind == "choice" else question.answer
        examples.append(PageExample(path, question.prompt(post), spelled))
    return examples
