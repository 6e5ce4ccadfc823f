"""One method on one clip: the ratios it can be asked for, its answers at all of them, and what they cost."""

import resource
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jvidprune.costs.flops import count
from jvidprune.evals.answering import answer_all, time_alone
from jvidprune.evals.counts import count_replies
from jvidprune.evals.effect import fates
from jvidprune.evals.extract import grade
from jvidprune.evals.items import Item
from jvidprune.evals.matching import MATCHED, Costing, Matcher, Setting
from jvidprune.evals.plan import BASELINES
from jvidprune.evals.store import Record
from jvidprune.llm.batch import Reply
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, reduce_video, sweep_video
from jvidprune.llm.stages import StageClock
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.reducers.protocol import Reducer, inner_stages, of_frames
from jvidprune.tokens import QUESTION, VideoTokens


class MethodJob(NamedTuple):
    """A method on a clip: the ratios it can be asked for, and why not the others.

    Attributes:
      name: of the method.
      reducer: the method.
      ratios: nominal, under which its answers are filed.
      refused: nominal ratio -> why it cannot be asked for.
      settings: how the method comes to the cost of each of `ratios`; None where it is asked for these themselves.
    """

    name: str
    reducer: Reducer
    ratios: tuple[float, ...]
    refused: dict[float, str]
    settings: tuple[Setting, ...] | None = None

    @property
    def asked(self) -> list[float]:
        """What the method is asked for; the question without video stands at ratio 0, of which is no budget."""
        if self.settings is not None:
            return [setting.ratio for setting in self.settings]
        return [ratio or 1.0 for ratio in self.ratios]


def make_job(
    name: str, reducer: Reducer, video: VideoTokens, ratios: tuple[float, ...], matcher: Matcher | None = None
) -> MethodJob:
    """A method on a clip at the ratios, or at the settings that cost as much as a plain selection at these.

    Args:
      name: of the method; the baselines are what they are.
      reducer: the method.
      video: the clip.
      ratios: nominal ones.
      matcher: finds settings of equal cost; None asks for the ratios.
    """
    if matcher is None or name in BASELINES:
        return MethodJob(name, reducer, *possible_ratios(reducer, video, ratios))
    settings: dict[float, Setting] = {}
    refused: dict[float, str] = {}
    for ratio in ratios:
        try:
            found = matcher.setting(video.layout(), reducer, ratio)
        except ValueError as error:
            refused[ratio] = str(error)
            continue
        _, why = possible_ratios(reducer, video, (found.ratio,))
        if why:
            refused[ratio] = why[found.ratio]
        else:
            settings[ratio] = found
    return MethodJob(name, reducer, tuple(settings), refused, tuple(settings.values()))


def possible_ratios(
    reducer: Reducer, video: VideoTokens, ratios: tuple[float, ...]
) -> tuple[tuple[float, ...], dict[float, str]]:
    """The ratios a method can be asked for on one video, and why not the others; another video may have other ones."""
    possible: list[float] = []
    refused: dict[float, str] = {}
    for ratio in ratios:
        try:
            reducer.budget(video.layout(), ratio or 1.0)
            inner_stages(reducer, ratio or 1.0)
            possible.append(ratio)
        except ValueError as error:
            refused[ratio] = str(error)
    return tuple(possible), refused


def answer_job(
    llm: VideoLLM,
    item: Item,
    video: EncodedVideo,
    job: MethodJob,
    *,
    longest: int,
    rule: str,
    timed: bool,
    costing: Costing | None = None,
) -> tuple[list[Record], list[Record]]:
    """Records of the samples and of the batches of one method on one clip, without keys.

    Args:
      llm: the model.
      item: what is asked about the clip.
      video: the encoded clip.
      job: the method, and the ratios that are possible.
      longest: tokens of an answer.
      rule: for choice letters, see `extract.RULES`.
      timed: whether one question is asked alone at every ratio, to see what a ratio costs.
      costing: of the job's settings, where costs are made equal.

    Raises:
      JvidpruneError: the method or the model cannot do this clip.
    """
    questions = [question.prompt() for question in item.questions]
    clock = StageClock()
    # A method that reads the question reduces the clip once for each of them.
    reads = bool(job.reducer.needs & QUESTION)
    different = list(dict.fromkeys(questions))
    shown = [llm.with_evidence(video, job.reducer, text) for text in different] if reads else [video]
    again = of_frames(job.reducer)
    if again:
        swept = [[_encoded(video, job.reducer, ratio, clock) for ratio in job.asked]]
    else:
        with clock("reduce"):
            swept = [sweep_video(one, job.reducer, job.asked) for one in shown]
    with clock("answer"):
        by_question = dict(zip(different, swept if reads else swept * len(different), strict=True))
        replies = answer_all(llm, [by_question[text] for text in questions], questions, max_new_tokens=longest)
    stages = clock.stages
    alone = time_alone(llm, by_question[questions[0]], questions[0], max_new_tokens=longest) if timed else []
    samples, batches = [], []
    for i, (ratio, row) in enumerate(zip(job.ratios, replies, strict=True)):
        for question, reply in zip(item.questions, row, strict=True):
            graded = grade(reply.text, question.answer, question.kind, question.options, rule=rule)
            record = {"clip": item.id, "question": question.id, "method": job.name, "ratio": ratio}
            record |= {"category": question.category, "prediction": reply.text, "answer": question.answer}
            if question.kind == "open":
                # A judge reads the record alone.
                record |= {"asked": question.text, "rubric": question.rubric}
            counts = {"kept": reply.kept, "visual": reply.visual, "prompt": reply.prompt}
            samples.append(record | graded | counts)
        # A method of other frames encodes the clip anew for every ratio, in place of reducing it.
        share = {"encode": stages[i].seconds} if again else {"reduce": stages[0].seconds / len(job.ratios) / len(shown)}
        costs: Record = {"ratio": ratio, "refused": "", "reduce": 0.0} | share
        if timed:
            costs |= {"prefill": alone[i][0], "generate": alone[i][1]}
        compiled = sum(one.compile_seconds for one in stages) * (i == 0)
        costs |= {"compile": compiled, "memory": peak_memory()}
        # Like times, logits are not the same to the last digit on other devices; answers are.
        asked = zip(item.questions, row, strict=True)
        logits = {one.id: [[token, round(value, 3)] for token, value in reply.likeliest] for one, reply in asked}
        costs |= fates([one[i] for one in swept]) | {"logits": logits}
        asked_for = job.asked[i]
        costs |= count_replies(llm, job.reducer, asked_for, list(zip(questions, row, strict=True)))
        if costing is not None and job.settings is not None:
            found, layout = job.settings[i], video.tokens.layout()
            reached = costing.reached(layout, job.reducer, found.ratio, row)
            costs |= dict(zip(MATCHED, (found.ratio, found.target, reached), strict=True))
        batches.append(costs | _tflops(llm, video.tokens, job, asked_for, row) | {"together": list(job.ratios)})
    return samples, batches


def _encoded(video: EncodedVideo, reducer: Reducer, ratio: float, clock: StageClock) -> ReducedVideo:
    """Other frames of a clip, encoded for one ratio; timed."""
    with clock("encode"):
        return reduce_video(video, reducer, ratio)


def _tflops(
    llm: VideoLLM, video: VideoTokens, job: MethodJob, ratio: float, replies: Sequence[Reply]
) -> dict[str, float]:
    """TFLOPs of an answer of mean length, and of its prefill; nothing for a method that cannot be counted."""
    names = "kept", "newlines", "prompt", "generated"
    means = {name: round(sum(getattr(r, name) for r in replies) / len(replies)) for name in names}
    sizes = {name: means[name] for name in ("kept", "newlines")}
    # Rounded means may miss a token of their sum.
    sizes["prompt"] = max(means["prompt"], means["kept"] + means["newlines"])
    sizes["new_tokens"] = max(1, means["generated"])
    reducer = {"reducer": job.reducer, "ratio": ratio}
    report = count(llm.loaded.config, video.layout(), **sizes, **reducer)
    return {"tflops": report.total / 1e12, "prefill_tflops": report.of("prefill") / 1e12}


def peak_memory() -> int:
    """Most bytes in use since the process started: of the device where it tells, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
