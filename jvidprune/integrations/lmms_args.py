"""What lmms-eval's command line and tasks can say to the model `jvidprune`, read and checked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from jvidprune.errors import JvidpruneError
from jvidprune.llm.conventions import check_convention
from jvidprune.models.checkpoint.dtypes import AUTO, DTypeName
from jvidprune.models.embedded import EMBEDDED
from jvidprune.models.positions import MropeRule, check_rule
from jvidprune.models.quantised import Quantise, check_quantise
from jvidprune.models.sampling import check_sampling
from jvidprune.models.settings import Convention
from jvidprune.reducers.prompt_rules import PositionRule, check_positions
from jvidprune.reducers.protocol import check_ratio
from jvidprune.reducers.registry import from_text
from jvidprune.texts import unknown

Likelihood = Literal["loss", "sum", "logprob"]

_IGNORED = ("device", "max_batch_size")
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "n": 1, "best_of": 1, "num_return_sequences": 1}
"""Settings of a generation that are not supported, with the value at which they change nothing."""


@dataclasses.dataclass(frozen=True)
class ModelArgs:
    """What `--model_args` of lmms-eval can say.

    Attributes:
      pretrained: checkpoint folder or hub id; the embedded model by default.
      reducer: method as for `jvidprune ask`, one of the user's own included, in quotes where it holds commas; by
        default the folder's own (jvidprune_config.json), else none.
      ratio: retention ratio; by default the folder's own.
      max_frames_num: frames sampled from a video at most; by default what the family was evaluated with.
      fps: sample at this rate, by the family's own rule and limits, with `max_frames_num` as the most.
      dtype: of parameters and activations: float32, bfloat16, float16, or auto, the checkpoint's.
      quantise: hold the language model's matrices in one byte a weight, int8 or fp8.
      revision: of a hub id.
      template: of prompts, see `VideoLLM.load`.
      pooling_head, text_tower: see `VideoLLM.load`.
      positions: of kept tokens, "renumbered" or "original", see `VideoLLM.load`.
      convention, mrope_rule: see `VideoLLM.load`; "lmms-eval" reads videos as lmms-eval's own models do.
      batch_size: prompts that are read together (lmms-eval's --batch_size).
      max_new_tokens: longest answer of tasks that name no length.
      resume: folder where every answer is kept as soon as it is made; a run that was stopped goes on from there. Runs
        of any settings can share it: answers are filed under everything that decides them, each for itself: settings,
        the text that is asked, and what the video's file holds. Documents may come, go and move.
      strict: stop at the first document whose video cannot be read. Otherwise its answer is empty and its likelihoods
        are all alike, it is told at the end (with `resume` also in failures.jsonl), and tried again by the next run.
      allow_code: see `VideoLLM.load`.
      likelihood: what a log-likelihood request gives: "loss", the mean negative log-likelihood of a token, which
        lmms-eval's models return and whose minimum its multiple-choice tasks take; "sum", that of all tokens; or
        "logprob", the sum with its sign as the interface's text has it.
    """

    pretrained: str = str(EMBEDDED)
    reducer: str | None = None
    ratio: float | None = None
    max_frames_num: int | None = None
    fps: float | None = None
    dtype: str = AUTO
    quantise: Quantise | None = None
    revision: str | None = None
    template: str | None = None
    pooling_head: str | None = None
    text_tower: str | None = None
    positions: PositionRule | None = None
    convention: Convention | None = None
    mrope_rule: MropeRule | None = None
    batch_size: int = 1
    max_new_tokens: int = 1024
    resume: str | None = None
    likelihood: Likelihood = "loss"
    strict: bool = False
    allow_code: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "ModelArgs":
        """From the keywords that lmms-eval makes of its arguments.

        Raises:
          JvidpruneError: an unknown key, or a value of the wrong kind.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        made: dict[str, Any] = {}
        for key, value in given.items():
            if key in _IGNORED or value is None:
                continue
            if key not in fields:
                raise JvidpruneError(unknown("model argument", key, tuple(fields)))
            if key in ("max_frames_num", "batch_size", "max_new_tokens"):
                made[key] = _whole(key, value)
            elif key == "fps":
                made[key] = _positive(key, value)
            elif key in ("strict", "allow_code"):
                made[key] = _truth(key, value)
            elif key == "ratio":
                made[key] = check_ratio(value)
            else:
                made[key] = str(value).strip().strip("'\"")
        args = cls(**made)
        for key, allowed in (("dtype", (*get_args(DTypeName), AUTO)), ("likelihood", get_args(Likelihood))):
            if getattr(args, key) not in allowed:
                raise JvidpruneError(f"{key} must be {' or '.join(allowed)}, got {getattr(args, key)!r}.")
        check_positions(args.positions)
        check_quantise(args.quantise)
        for name, check in ((args.convention, check_convention), (args.mrope_rule, check_rule)):
            if name is not None:
                check(name)
        if args.reducer is not None:
            from_text(args.reducer)
        return args


class LmmsGeneration(NamedTuple):
    """How an answer is generated: `answer_many`'s settings, and texts that end it."""

    max_new_tokens: int
    temperature: float
    top_p: float
    until: tuple[str, ...]

    @classmethod
    def read(cls, given: Mapping[str, Any], max_new_tokens: int) -> "LmmsGeneration":
        """From a task's generation_kwargs; without do_sample or a temperature the answer is greedy.

        Args:
          given: the task's settings; keys that belong to images are ignored.
          max_new_tokens: where the task names no length.

        Raises:
          JvidpruneError: a setting that would change answers and is not supported, or one out of range.
        """
        for key, neutral in _NEUTRAL.items():
            if given.get(key) not in (None, neutral):
                raise JvidpruneError(f"{key} {given[key]!r} of the task is not supported; it must be {neutral}.")
        length = given.get("max_new_tokens") or given.get("max_gen_toks") or max_new_tokens
        temperature = float(given.get("temperature") or 0.0)
        sampled = given.get("do_sample")
        if sampled and temperature == 0:
            temperature = 1.0
        if sampled is not None and not sampled:
            temperature = 0.0
        if temperature > 0 and given.get("top_k") not in (None, 0, -1):
            raise JvidpruneError(f"top_k {given['top_k']!r} of the task is not supported; sample with top_p.")
        top_p = given.get("top_p")
        top_p = 1.0 if temperature == 0 or top_p is None else float(top_p)
        until = given.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        length = _whole("max_new_tokens", length)
        check_sampling(length, temperature, top_p)
        return cls(length, temperature, top_p, tuple(stop for stop in stops if stop))

    def cut(self, text: str) -> str:
        """An answer up to the first text that ends it."""
        for stop in self.until:
            text = text.split(stop)[0]
        return text.strip()


def _whole(key: str, value: Any) -> int:
    try:
        number = int(value)
        if number != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise JvidpruneError(f"{key} must be a whole number, got {value!r}.") from None
    if number < 1:
        raise JvidpruneError(f"{key} must be at least 1, got {number}.")
    return number


def _truth(key: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise JvidpruneError(f"{key} must be True or False, got {value!r}.")
    return text in ("true", "1")


def _positive(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise JvidpruneError(f"{key} must be a number, got {value!r}.") from None
    if not number > 0 or not math.isfinite(number):
        raise JvidpruneError(f"{key} must be positive, got {value}.")
    return number
