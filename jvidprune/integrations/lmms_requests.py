"""lmms-eval's requests answered by a `VideoLLM`; knows the form of a request, imports nothing of lmms-eval."""

import contextlib
import functools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, reading, reason
from jvidprune.evals.answering import MIN_FILL
from jvidprune.evals.hosts import only_writer
from jvidprune.evals.identity import model_identity, plain, run_hash
from jvidprune.evals.store import RecordStore
from jvidprune.integrations.lmms_args import LmmsGeneration, ModelArgs
from jvidprune.integrations.lmms_documents import (
    Answered,
    Failed,
    UnsupportedTask,
    called,
    checked,
    continuation,
    frames_of,
    mark_of,
    occurrences,
    same_prompt,
)
from jvidprune.llm.batch import Prompt, Score, answer_many, score_many
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.evidence import check_evidence
from jvidprune.reducers.protocol import of_frames
from jvidprune.tokens import QUESTION
from jvidprune.video.decode import Clip

_KEPT = 4
"""Videos that are remembered for later questions about them: reduced ones, or encoded ones for methods that read the
question."""

UNLIKELY = -1e6
"""Log-likelihood of every continuation where the video cannot be read."""


class Responses(Sequence[Any]):
    """Responses in order, made as they are read, so that lmms-eval's cache has each on disk before the next batch."""

    def __init__(self, made: Iterator[Any], count: int):
        self._made, self._count = made, count
        self._known: list[Any] = []

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        place = index + self._count if index < 0 else index
        if not 0 <= place < self._count:
            raise IndexError(f"there are {self._count} responses, not {index}")
        while len(self._known) <= place:
            self._known.append(next(self._made))
            if len(self._known) == self._count:
                # Nothing more is asked of the maker: it may close its files.
                next(self._made, None)
        return self._known[place]


class Adapter:
    """Answers requests in their order, `batch_size` prompts at a time; questions in a row share an encoded video."""

    def __init__(self, args: ModelArgs):
        """Loads the model.

        Raises:
          JvidpruneError: anything wrong with the checkpoint, or a reducer without a ratio.
        """
        self.args = args
        self.llm = VideoLLM.load(
            args.pretrained,
            dtype=args.dtype,
            quantise=args.quantise,
            template=args.template,
            pooling_head=args.pooling_head,
            text_tower=args.text_tower,
            positions=args.positions,
            revision=args.revision,
            convention=args.convention,
            mrope_rule=args.mrope_rule,
            allow_code=args.allow_code,
        )
        own = self.llm.pruning
        if args.reducer is not None:
            self.reducer = self.llm.reducer(args.reducer)
        else:
            self.reducer = own.reducer if own is not None else self.llm.reducer("none")
        ratio = args.ratio if args.ratio is not None or own is None else own.ratio
        if ratio is None and args.reducer not in (None, "none"):
            raise JvidpruneError(f"the reducer {args.reducer} needs a ratio: reducer={args.reducer},ratio=0.1.")
        self.ratio = 1.0 if ratio is None else ratio
        check_evidence(self.llm.loaded.family, self.reducer.needs - QUESTION, self.llm.loaded.model.provides, None)
        self._videos: OrderedDict[str, EncodedVideo | ReducedVideo] = OrderedDict()
        self.failures: dict[tuple[str, str, Any], str] = {}
        """(task, split, document) -> why it was not answered."""

    def generate(
        self, requests: Sequence[Any], documents: Mapping[str, Any], finished: Callable[[int], Any] = lambda count: None
    ) -> Iterator[Answered]:
        """Answers in the order of the requests.

        Args:
          requests: their `args` are (context, generation_kwargs, doc_to_visual, doc_id, task, split).
          documents: task -> split -> documents (`lmms.task_dict`).
          finished: called with the number of requests of each batch that is done.

        A document whose video cannot be read is answered by an empty text, unless `ModelArgs.strict`; see `failures`.

        Raises:
          JvidpruneError: a request that is none about a video, with `strict` one that cannot be answered (the sentence
            names its document), or, at the end, no document that could be answered.
        """
        asked = [checked(request.args) for request in requests]
        ways = [LmmsGeneration.read(args[1], self.args.max_new_tokens) for args in asked]
        # Samples of one request (repeats) differ in their seeds, and each is known by its own.
        named = [{"request": [args[0], *args[3:]], "way": way} for args, way in zip(asked, ways, strict=True)]
        seeds = occurrences([run_hash(one) for one in named])

        def answer(prompts: Mapping[int, Prompt]) -> dict[int, Answered]:
            made: dict[int, Answered] = {}
            for way in dict.fromkeys(ways[i] for i in prompts):
                mine = [i for i in prompts if ways[i] == way]
                replies = answer_many(
                    self.llm,
                    [prompts[i] for i in mine],
                    max_new_tokens=way.max_new_tokens,
                    temperature=way.temperature,
                    top_p=way.top_p,
                    seeds=[seeds[i] for i in mine],
                    batch=self.args.batch_size,
                    min_fill=MIN_FILL,
                )
                for i, reply in zip(mine, replies, strict=True):
                    made[i] = Answered(way.cut(reply.text), reply.prompt, reply.generated)
            return made

        def key(place: int, visuals: Any) -> str:
            way = ways[place]
            known = self._key("generate", asked[place], way, visuals)
            return known if way.temperature == 0 else f"{known}-{seeds[place]}"

        units = [[i] for i in range(len(requests))]
        values = self._resumed(asked, units, documents, key, answer, finished, Answered("", 0, 0))
        return (Answered(*value) for value in values)

    def likelihoods(
        self, requests: Sequence[Any], documents: Mapping[str, Any], finished: Callable[[int], Any] = lambda count: None
    ) -> Iterator[tuple[float, bool]]:
        """(value, greedy) of each continuation; requests in a row with one prompt read it once.

        Args:
          requests: their `args` are (context, continuation or doc_to_target, doc_to_visual, doc_id, task, split).
          documents, finished: as for `generate`.

        Raises:
          JvidpruneError: as `generate`.
        """
        asked = [checked(request.args) for request in requests]
        texts = [continuation(args, documents) for args in asked]
        units: list[list[int]] = []
        for i, args in enumerate(asked):
            if units and same_prompt(asked[units[-1][0]], args):
                units[-1].append(i)
            else:
                units.append([i])

        def answer(prompts: Mapping[int, Prompt]) -> dict[int, tuple[float, int, bool]]:
            groups: list[list[int]] = []
            for i in prompts:
                if groups and same_prompt(asked[groups[-1][0]], asked[i]):
                    groups[-1].append(i)
                else:
                    groups.append([i])
            choices = [[texts[i] for i in group] for group in groups]
            rows = score_many(
                self.llm,
                [prompts[group[0]] for group in groups],
                choices,
                batch=self.args.batch_size,
                min_fill=MIN_FILL,
            )
            values = [(score.log_likelihood, score.tokens, score.greedy) for row in rows for score in row]
            return dict(zip((i for group in groups for i in group), values, strict=True))

        def key(place: int, visuals: Any) -> str:
            return self._key("likelihood", asked[place], texts[place], visuals)

        values = self._resumed(asked, units, documents, key, answer, finished, (UNLIKELY, 1, False))
        return (self._value(Score(*value)) for value in values)

    def _resumed(
        self,
        asked: Sequence[tuple[Any, ...]],
        units: Sequence[Sequence[int]],
        documents: Mapping[str, Any],
        key: Callable[[int, Any], str],
        answer: Callable[[Mapping[int, Prompt]], Mapping[int, tuple[Any, ...]]],
        finished: Callable[[int], Any],
        empty: tuple[Any, ...],
    ) -> Iterator[tuple[Any, ...]]:
        """Values of requests in order: known ones from the store, others made, `batch_size` prompts at a time.

        Args:
          asked: arguments of the requests.
          units: places of requests that share a prompt, in order.
          documents: see `generate`.
          key: of a place and what its document shows.
          answer: makes values for prompts by place.
          finished: see `generate`.
          empty: value of a request that cannot be answered.
        """
        with contextlib.ExitStack() as stack:
            store = bad = None
            if self.args.resume is not None:
                # Processes of a distributed run (lmms-eval's launchers set these) write files of their own.
                alone = os.environ.get("WORLD_SIZE", "1") == "1"
                folder = Path(self.args.resume) / ("" if alone else f"rank{os.environ.get('RANK', '0')}")
                stack.enter_context(only_writer(folder))
                store = stack.enter_context(contextlib.closing(RecordStore(folder / "answers.jsonl", ("key",))))
                bad = stack.enter_context(contextlib.closing(RecordStore(folder / "failures.jsonl", ("key",))))
            for start in range(0, len(units), self.args.batch_size):
                places = [i for unit in units[start:][: self.args.batch_size] for i in unit]
                shown = {i: self._visuals(asked[i], documents) for i in places}
                keys = {i: key(i, shown[i]) for i in places} if store is not None else {}
                values: dict[int, tuple[Any, ...]] = {}
                for i, name in keys.items():
                    if store is not None and (record := store.get((name,))) is not None:
                        values[i] = tuple(record["value"])
                missing = [i for i in places if i not in values]
                made = self._made(asked, {i: shown[i] for i in missing}, answer)
                failed = {i: value.reason for i, value in made.items() if isinstance(value, Failed)}
                values |= {i: empty if i in failed else made[i] for i in missing}
                if store is not None:
                    store.append({"key": keys[i], "value": list(made[i])} for i in missing if i not in failed)
                for i, why in failed.items():
                    _, _, _, doc_id, task, split = asked[i]
                    self.failures[str(task), str(split), doc_id] = why
                    if bad is not None:
                        place = {"task": str(task), "split": str(split), "document": str(doc_id)}
                        bad.append([{"key": keys[i], **place, "reason": why}])
                finished(len(places))
                yield from (values[i] for i in places)
        self._tell(asked)

    def _made(
        self,
        asked: Sequence[tuple[Any, ...]],
        shown: Mapping[int, Any],
        answer: Callable[[Mapping[int, Prompt]], Mapping[int, tuple[Any, ...]]],
    ) -> dict[int, tuple[Any, ...]]:
        """Values of places, or why there is none; what one prompt of a batch cannot, the others still can."""
        made: dict[int, tuple[Any, ...]] = {}
        prompts: dict[int, Prompt] = {}
        for i, visuals in shown.items():
            try:
                prompts[i] = self._prompt(asked[i], visuals)
            except UnsupportedTask:
                raise
            except JvidpruneError as error:
                made[i] = self._failed(error)
        try:
            return made | dict(answer(prompts)) if prompts else made
        except JvidpruneError:
            for i, prompt in prompts.items():
                try:
                    made |= answer({i: prompt})
                except JvidpruneError as error:
                    made[i] = self._failed(JvidpruneError(f"{called(asked[i])}: {error}"))
        return made

    def _failed(self, error: JvidpruneError) -> Failed:
        if self.args.strict:
            raise error
        return Failed(str(error))

    def _tell(self, asked: Sequence[tuple[Any, ...]]) -> None:
        """Counts and lists the documents that were not answered.

        Raises:
          JvidpruneError: there is no other.
        """
        documents = {(str(args[4]), str(args[5]), args[3]) for args in asked}
        reasons = [why for place, why in self.failures.items() if place in documents]
        if not reasons:
            return
        if len(reasons) == len(documents):
            raise JvidpruneError(f"none of the {len(reasons)} documents could be answered; the first: {reasons[0]}")
        logging.getLogger("jvidprune").warning(
            "%d of %d documents could not be answered and count as empty answers:\n%s",
            len(reasons),
            len(documents),
            "\n".join(reasons),
        )

    def _key(self, kind: str, args: tuple[Any, ...], extra: Any, visuals: Any) -> str:
        """What an answer is filed under: everything that decides it."""
        parts = [visuals] if isinstance(visuals, str | Path | Failed) else list(visuals or ())
        return run_hash({"run": self._identity, "request": [kind, args[0], list(map(mark_of, parts)), plain(extra)]})

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        method = {"reducer": plain(self.reducer), "ratio": self.ratio}
        return model_identity(self.llm) | method | {"frames": self.args.max_frames_num, "fps": self.args.fps}

    def _value(self, score: Score) -> tuple[float, bool]:
        values = {"loss": -score.mean, "sum": -score.log_likelihood, "logprob": score.log_likelihood}
        return values[self.args.likelihood], score.greedy

    def _visuals(self, args: tuple[Any, ...], documents: Mapping[str, Any]) -> Any:
        """What a document shows; `Failed` where the task's own function cannot say."""
        _, _, to_visual, doc_id, task, split = args
        try:
            return to_visual(documents[task][split][doc_id])
        except Exception as error:
            return Failed(f"the task's doc_to_visual fails: {type(error).__name__}: {reason(error)}.")

    def _prompt(self, args: tuple[Any, ...], visuals: Any) -> Prompt:
        try:
            if isinstance(visuals, Failed):
                raise JvidpruneError(visuals.reason)
            return Prompt(self._video(visuals, str(args[0])), str(args[0]))
        except JvidpruneError as error:
            raise type(error)(f"{called(args)}: {error}") from error

    def _video(self, visuals: Any, question: str) -> ReducedVideo | list[ReducedVideo]:
        """What doc_to_visual gives, reduced: paths of videos, the frames of one as pictures, or a picture."""
        parts: list[Any] = [visuals] if isinstance(visuals, str | Path) else list(visuals or ())
        if parts and all(isinstance(part, str | Path) for part in parts):
            videos = [self._reduced(self._file(str(part)), question) for part in parts]
            return videos[0] if len(videos) == 1 else videos
        if len(parts) > 1 and all(hasattr(part, "convert") for part in parts):
            clip = frames_of(parts, self.llm.settings.wish(self.args.max_frames_num, self.args.fps))
            return self._reduced(self._ready(clip), question)
        if len(parts) == 1 and hasattr(parts[0], "convert") and self.llm.settings.pictures:
            return self._reduced(self._ready(Clip.of_picture(parts[0].convert("RGB"))), question)
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing"
        raise UnsupportedTask(f"jvidprune reads videos (paths, or several pictures as frames), the task gives {kinds}.")

    def _file(self, path: str) -> EncodedVideo | ReducedVideo:
        if path not in self._videos:
            with reading(path):
                clip = self.llm.sample(path, frames=self.args.max_frames_num, fps=self.args.fps)
            self._videos[path] = self._ready(clip)
            while len(self._videos) > _KEPT:
                self._videos.popitem(last=False)
        self._videos.move_to_end(path)
        return self._videos[path]

    def _ready(self, clip: Clip) -> EncodedVideo | ReducedVideo:
        """What of a clip is the same for all questions: its reduction, or its tokens where the method reads these."""
        if of_frames(self.reducer):
            return self.llm.reduce(clip, reducer=self.reducer, ratio=self.ratio)
        video = self.llm.encode(clip, needs=self.reducer.needs - QUESTION)
        return video if self.reducer.needs & QUESTION else self._reduced(video, None)

    def _reduced(self, video: EncodedVideo | ReducedVideo, question: str | None) -> ReducedVideo:
        if isinstance(video, ReducedVideo):
            return video
        return self.llm.reduce(video, reducer=self.reducer, ratio=self.ratio, question=question)
