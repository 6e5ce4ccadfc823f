"""lmms-eval's requests answered by a `VideoLLM`; knows the form of a request, imports nothing of lmms-eval."""

import contextlib
import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvidprune.bench.answering import MIN_FILL
from jvidprune.bench.hosts import only_writer
from jvidprune.bench.identity import model_identity, plain, run_hash
from jvidprune.bench.store import RecordStore
from jvidprune.errors import JvidpruneError
from jvidprune.inference.batch import Prompt, Score, answer_many, score_many
from jvidprune.inference.pipeline import VideoLLM
from jvidprune.inference.reduced import ReducedVideo
from jvidprune.integrations.lmms_args import Generation, ModelArgs
from jvidprune.video.decode import Clip
from jvidprune.video.wish import FrameWish

_KEPT = 4
"""Reduced videos that are remembered for later questions about them."""


class Answered(NamedTuple):
    """A reply's text, cut at what ends it, and the lengths of prompt and answer in tokens."""

    text: str
    prompt: int
    generated: int


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
        options: dict[str, Any] = {"template": args.template, "pooling_head": args.pooling_head}
        options |= {"positions": args.positions, "revision": args.revision}
        options |= {"convention": args.convention, "mrope_rule": args.mrope_rule}
        self.llm = VideoLLM.load(args.pretrained, dtype=args.dtype, **options)
        own = self.llm.pruning
        if args.reducer is not None:
            self.reducer = self.llm.reducer(args.reducer)
        else:
            self.reducer = own.reducer if own is not None else self.llm.reducer("none")
        ratio = args.ratio if args.ratio is not None or own is None else own.ratio
        if ratio is None and args.reducer not in (None, "none"):
            raise JvidpruneError(f"the reducer {args.reducer} needs a ratio: reducer={args.reducer},ratio=0.1.")
        self.ratio = 1.0 if ratio is None else ratio
        self._videos: OrderedDict[str, ReducedVideo] = OrderedDict()

    def generate(
        self, requests: Sequence[Any], documents: Mapping[str, Any], finished: Callable[[int], Any] = lambda count: None
    ) -> Iterator[Answered]:
        """Answers in the order of the requests.

        Args:
          requests: their `args` are (context, generation_kwargs, doc_to_visual, doc_id, task, split).
          documents: task -> split -> documents (`lmms.task_dict`).
          finished: called with the number of requests of each batch that is done.

        Raises:
          JvidpruneError: a request that cannot be answered; the sentence names its document.
        """
        asked = [_checked(request.args) for request in requests]
        ways = [Generation.read(args[1], self.args.max_new_tokens) for args in asked]
        # Samples of one request (repeats) differ in their seeds, and each is known by its own.
        keys = [self._key("generate", args, way) for args, way in zip(asked, ways, strict=True)]
        seeds = _occurrences(keys)
        keys = [
            key if way.temperature == 0 else f"{key}-{seed}" for key, way, seed in zip(keys, ways, seeds, strict=True)
        ]

        def answer(places: Sequence[int]) -> list[Answered]:
            prompts = {i: self._prompt(asked[i], documents) for i in places}
            made: dict[int, Answered] = {}
            for way in dict.fromkeys(ways[i] for i in places):
                mine = [i for i in places if ways[i] == way]
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
            return [made[i] for i in places]

        units = [[i] for i in range(len(requests))]
        return (Answered(*value) for value in self._resumed(units, keys, answer, finished))

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
        asked = [_checked(request.args) for request in requests]
        texts = [_continuation(args, documents) for args in asked]
        keys = [self._key("likelihood", args, text) for args, text in zip(asked, texts, strict=True)]
        units: list[list[int]] = []
        for i, args in enumerate(asked):
            if units and _same_prompt(asked[units[-1][0]], args):
                units[-1].append(i)
            else:
                units.append([i])

        def answer(places: Sequence[int]) -> list[tuple[float, int, bool]]:
            groups: list[list[int]] = []
            for i in places:
                if groups and _same_prompt(asked[groups[-1][0]], asked[i]):
                    groups[-1].append(i)
                else:
                    groups.append([i])
            prompts = [self._prompt(asked[group[0]], documents) for group in groups]
            choices = [[texts[i] for i in group] for group in groups]
            rows = score_many(self.llm, prompts, choices, batch=self.args.batch_size, min_fill=MIN_FILL)
            return [(score.log_likelihood, score.tokens, score.greedy) for row in rows for score in row]

        return (self._value(Score(*value)) for value in self._resumed(units, keys, answer, finished))

    def _resumed(
        self,
        units: Sequence[Sequence[int]],
        keys: Sequence[str],
        answer: Callable[[Sequence[int]], Sequence[tuple[Any, ...]]],
        finished: Callable[[int], Any],
    ) -> Iterator[tuple[Any, ...]]:
        """Values of requests in order: known ones from the store, others made, `batch_size` prompts at a time.

        Args:
          units: places of requests that share a prompt, in order.
          keys: of each request.
          answer: makes values for places.
          finished: see `generate`.
        """
        with contextlib.ExitStack() as stack:
            store: Any = None
            if self.args.resume is not None:
                # Processes of a distributed run (lmms-eval's launchers set these) write files of their own.
                alone = os.environ.get("WORLD_SIZE", "1") == "1"
                folder = Path(self.args.resume) / ("" if alone else f"rank{os.environ.get('RANK', '0')}")
                stack.enter_context(only_writer(folder))
                store = stack.enter_context(contextlib.closing(RecordStore(folder / "answers.jsonl", ("key",))))
            for start in range(0, len(units), self.args.batch_size):
                places = [i for unit in units[start:][: self.args.batch_size] for i in unit]
                known = {i: store.get((keys[i],)) for i in places} if store is not None else {}
                missing = [i for i in places if known.get(i) is None]
                values: dict[int, Any] = {
                    i: tuple(record["value"]) for i, record in known.items() if record is not None
                }
                made = answer(missing) if missing else []
                values |= dict(zip(missing, made, strict=True))
                if store is not None:
                    store.append({"key": keys[i], "value": list(values[i])} for i in missing)
                finished(len(places))
                yield from (values[i] for i in places)

    def _key(self, kind: str, args: tuple[Any, ...], extra: Any) -> str:
        """What an answer is filed under: everything that decides it, as far as a request tells."""
        context, _, _, doc_id, task, split = args
        return run_hash({"run": self._identity, "request": [kind, context, doc_id, task, split, plain(extra)]})

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        method = {"reducer": plain(self.reducer), "ratio": self.ratio}
        return model_identity(self.llm) | method | {"frames": self.args.max_frames_num, "fps": self.args.fps}

    def _value(self, score: Score) -> tuple[float, bool]:
        values = {"loss": -score.mean, "sum": -score.log_likelihood, "logprob": score.log_likelihood}
        return values[self.args.likelihood], score.greedy

    def _prompt(self, args: tuple[Any, ...], documents: Mapping[str, Any]) -> Prompt:
        context, _, to_visual, doc_id, task, split = args
        try:
            return Prompt(self._video(to_visual(documents[task][split][doc_id])), str(context))
        except JvidpruneError as error:
            raise JvidpruneError(f"document {doc_id} of {task}: {error}") from error

    def _video(self, visuals: Any) -> ReducedVideo | list[ReducedVideo]:
        """The reduced video of what doc_to_visual gives: paths of videos, or the frames of one as pictures."""
        parts = [visuals] if isinstance(visuals, str | Path) else list(visuals or ())
        if parts and all(isinstance(part, str | Path) for part in parts):
            videos = [self._file(str(part)) for part in parts]
            return videos[0] if len(videos) == 1 else videos
        if len(parts) > 1 and all(hasattr(part, "convert") for part in parts):
            return self._reduced(_frames(parts, self.llm.settings.wish(self.args.max_frames_num, self.args.fps)))
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing"
        raise JvidpruneError(f"jvidprune reads videos (paths, or several pictures as frames), the task gives {kinds}.")

    def _file(self, path: str) -> ReducedVideo:
        if path not in self._videos:
            self._videos[path] = self._reduced(
                self.llm.sample(path, frames=self.args.max_frames_num, fps=self.args.fps)
            )
            while len(self._videos) > _KEPT:
                self._videos.popitem(last=False)
        self._videos.move_to_end(path)
        return self._videos[path]

    def _reduced(self, clip: Clip) -> ReducedVideo:
        if "text" in self.reducer.needs:
            raise JvidpruneError("a reducer that reads the question is not supported in lmms-eval.")
        video = self.llm.encode(clip.frames, self.reducer.needs)
        return self.llm.reduce(video, reducer=self.reducer, ratio=self.ratio, clip=clip)


def _frames(pictures: Sequence[Any], wish: FrameWish) -> Clip:
    """Pictures as the frames of a video, one a second."""
    places = wish.indices(len(pictures), 1.0)
    arrays = [np.asarray(pictures[i].convert("RGB")) for i in places]
    if len({array.shape for array in arrays}) > 1:
        raise JvidpruneError("the pictures of a video must have one size.")
    return Clip(np.stack(arrays), places, places.astype(np.float64), 1.0, len(pictures))


def _checked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(args) != 6:
        raise JvidpruneError(
            f"a request of {len(args)} parts is not supported: jvidprune answers questions about videos, given as "
            "(context, settings or continuation, doc_to_visual, doc_id, task, split)."
        )
    return args


def _same_prompt(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return (one[0], *one[3:]) == (other[0], *other[3:])


def _occurrences(keys: Sequence[str]) -> list[int]:
    """How often each key stood before."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        found.append(seen.get(key, 0))
        seen[key] = found[-1] + 1
    return found


def _continuation(args: tuple[Any, ...], documents: Mapping[str, Any]) -> str:
    _, target, _, doc_id, task, split = args
    return target if isinstance(target, str) else str(target(documents[task][split][doc_id]))
