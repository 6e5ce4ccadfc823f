"""A question from sources to its answer, at once or as it is written."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from jvidprune.errors import JvidpruneError
from jvidprune.llm.batch import Reply, decoding, reply_of
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo
from jvidprune.llm.generation import AnswerText, Finish, Generation
from jvidprune.llm.opening import Source, check_method, encode_frames, open_source
from jvidprune.llm.prompts.messages import Asked
from jvidprune.llm.rows import Prompt, batches, read_rows
from jvidprune.llm.stages import Stage, StageClock
from jvidprune.models.generate import decode_pieces
from jvidprune.reducers.prompt_rules import PositionRule, check_positions
from jvidprune.reducers.protocol import Reducer, of_frames
from jvidprune.video.decode import Clip

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

Video = Source | EncodedVideo | ReducedVideo
"""What a question can be asked about."""

Videos = Video | list[Video] | tuple[Video, ...] | None
"""One, several, or none for text alone."""

SAMPLE_STEP = 1 << 20
"""Between the seeds of two samples of one question; the first has the seed itself."""


def sample_seeds(seed: int, count: int) -> list[int]:
    """Seeds of so many samples of one question, the first one's as given."""
    return [seed, *((seed + SAMPLE_STEP * number) % (1 << 31) for number in range(1, count))]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    Attributes:
      question, text: what was asked and answered.
      token_ids: generated ids, end of sequence excluded.
      reducer: method name; empty for text alone.
      ratio: retention ratio asked for.
      kept, visual: tokens kept and tokens there were, newlines not counted.
      prompt: prompt length in tokens.
      positions: rule of the kept tokens' positions.
      stages: decode, encode, reduce, prefill, generate.
      untrained: the weights are random.
      finish: "stop" at an end of sequence or a stop text, "length" where the answer is as long as allowed.
      texts: all samples, `text` the first.
    """

    question: str
    text: str
    token_ids: tuple[int, ...]
    reducer: str
    ratio: float
    kept: int
    visual: int
    prompt: int
    positions: PositionRule
    stages: tuple[Stage, ...]
    untrained: bool
    finish: Finish | None = None
    texts: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [dataclasses.asdict(stage) | {"per_second": stage.rate} for stage in self.stages]
        return dataclasses.asdict(self) | {"token_ids": list(self.token_ids), "stages": stages}


def reduced_source(
    llm: "VideoLLM",
    video: Source | EncodedVideo,
    question: str,
    reducer: Any,
    ratio: float | None,
    fps: float | None,
    times: Sequence[float] | None,
    clock: StageClock,
) -> ReducedVideo:
    """The stages from a file or frames to a reduced video, each of them timed.

    Raises:
      JvidpruneError: no reducer or ratio, or what `encode` and `reduce` raise.
    """
    method: Reducer | None = llm.chosen(reducer)
    if not isinstance(video, EncodedVideo):
        if method is None or (ratio is None and llm.pruning is None):
            raise JvidpruneError("a video needs a reducer and a ratio.")
        with clock("decode", "frames") as stage:
            source = open_source(llm, video, fps, times)
            stage.tokens = len(source.frames if isinstance(source, Clip) else source)
        check_method(llm, source, method)
        if of_frames(method):
            # What it makes is what is encoded.
            with clock("encode") as stage:
                reduced = llm.reduce(source, reducer=method, ratio=ratio)
                stage.tokens = reduced.kept
            return reduced
        with clock("encode") as stage:
            video = encode_frames(llm, source, method.needs, question)
            jax.block_until_ready(video.tokens)
            stage.tokens = video.total
    elif fps is not None or times is not None:
        raise JvidpruneError("an encoded video has its times: leave fps= and times= out.")
    with clock("reduce") as stage:
        reduced = llm.reduce(video, reducer=method, ratio=ratio, question=question)
        stage.tokens = reduced.kept
    return reduced


def reduced_videos(
    llm: "VideoLLM",
    video: Videos,
    question: str,
    reducer: Any,
    ratio: float | None,
    fps: float | None,
    times: Sequence[float] | None,
    clock: StageClock,
    positions: PositionRule | None,
) -> list[ReducedVideo]:
    """All videos of a prompt, reduced; see `VideoLLM.ask`.

    Raises:
      JvidpruneError: see `reduced_source`, or an unknown rule of positions.
    """
    check_positions(positions)
    videos = [] if video is None else list(video) if isinstance(video, list | tuple) else [video]
    made = [
        one if isinstance(one, ReducedVideo) else reduced_source(llm, one, question, reducer, ratio, fps, times, clock)
        for one in videos
    ]
    return made if positions is None else [dataclasses.replace(one, positions=positions) for one in made]


def answer_of(
    llm: "VideoLLM", videos: Sequence[ReducedVideo], question: str, replies: Sequence[Reply], clock: StageClock
) -> Answer:
    """The answer that replies to one question make, the first sample's first."""
    reply = replies[0]
    return Answer(
        question=question,
        text=reply.text,
        token_ids=reply.token_ids,
        reducer=", ".join(dict.fromkeys(one.title for one in videos)),
        ratio=videos[0].ratio if videos else 1.0,
        kept=reply.kept,
        visual=reply.visual,
        prompt=reply.prompt,
        positions=llm.position_rule(videos),
        stages=tuple(clock.stages),
        untrained=llm.untrained,
        finish=reply.finish,
        texts=tuple(one.text for one in replies),
    )


class Stream(Iterator[str]):
    """An answer as it is written: `for piece in stream: ...`, all pieces together its text.

    A piece comes when it can no longer change: not before a character has all its bytes, nor while it may be the
    beginning of a stop text. Nothing runs before the first piece is asked for.
    """

    def __init__(
        self,
        llm: "VideoLLM",
        videos: Sequence[ReducedVideo],
        asked: Asked,
        generation: Generation,
        clock: StageClock,
        question: str,
    ):
        """Prepares the prompt.

        Args:
          llm: the model.
          videos: in the order of the prompt.
          asked: question or conversation.
          generation: settings.
          clock: gets a "prefill" and a "generate" stage.
          question: as the answer names it.
        """
        (self._rows,) = batches(llm, [Prompt(videos, asked)], reserve=generation.max_new_tokens, batch=1, min_fill=0.0)
        self._llm, self._videos, self._question = llm, list(videos), question
        self._generation, self._clock = generation, clock
        self._pieces = self._run()
        self._answer: Answer | None = None

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer with its stages, once the last piece has been taken.

        Raises:
          JvidpruneError: the stream has not ended.
        """
        if self._answer is None:
            raise JvidpruneError("the answer is there when the stream has ended: take all its pieces first.")
        return self._answer

    def _run(self) -> Iterator[str]:
        llm, rows, generation = self._llm, self._rows, self._generation
        with self._clock("prefill") as stage:
            logits, cache = jax.block_until_ready(read_rows(llm, rows, generation.max_new_tokens - 1))
            stage.tokens = rows.used[0].slots.length
        text = AnswerText(llm.tokenizer, llm.eos_ids, generation)
        keys = [jax.random.key(generation.seed)]
        with self._clock("generate") as stage:
            how = decoding(llm, rows, logits, generation, keys)
            for ids, _ in decode_pieces(llm.loaded.model, logits, cache, **how):
                if piece := text.push(ids[0].tolist()):
                    yield piece
                if text.answer.finish is not None:
                    break
            stage.tokens = len(text.answer.ids)
        reply = reply_of(llm, rows.used[0], text.answer)
        self._answer = answer_of(llm, self._videos, self._question, [reply], self._clock)
