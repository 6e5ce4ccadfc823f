"""Which frames of a video are read, and at what times they stand: the sampling rules of the references.

A rule gets the number of frames in the file, the file's rate in frames per second, and either a wanted number of frames
or a wanted rate. `round` is half-to-even throughout, as in Python.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int64

from jvidprune.errors import JvidpruneError

Rule = Literal[
    "uniform",
    "fps",
    "hf_default",
    "hf_qwen2",
    "hf_qwen3",
    "qwen_utils",
    "llava_video_force",
    "llava_video_upto",
    "molmo2",
    "hf_molmo2",
    "hf_video_llama_3",
    "hf_internvl",
]

RULES: tuple[str, ...] = get_args(Rule)

# Fewest and most frames the Qwen samplers take when they go by rate.
QWEN_FRAMES = (4, 768)

# The same of VideoLLaMA3's.
VIDEO_LLAMA_3_FRAMES = (4, 180)

# Rules of families that read frames in pairs.
PAIRED: tuple[Rule, ...] = ("hf_qwen2", "hf_qwen3", "qwen_utils")

# Rules that go by a rate of their own and take a number of frames as the most that is allowed.
UP_TO: tuple[Rule, ...] = ("llava_video_upto", "molmo2", "hf_molmo2")

# The rule by which a family samples at a rate, where it is another than for a number of frames.
RATE_RULES: dict[Rule, Rule] = {"uniform": "fps", "llava_video_force": "llava_video_upto"}

# Most frames a second that Molmo2 reads, and what its processor assumes of a file without a rate.
MOLMO2_RATE = 2.0

# What the Qwen3-VL processor assumes of a file without a rate.
DEFAULT_RATE = 24.0

Indices = Int64[np.ndarray, "frames"]


def sample_indices(
    total: int,
    rate: float,
    *,
    rule: Rule | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> Indices:
    """Frame indices in [0, total) by one of three wishes: a number of frames, a rate, or the indices themselves.

    Args:
      total: frames in the file.
      rate: frames per second of the file.
      rule: one of `RULES`; by default "uniform" for a number of frames (first and last frame included, indices repeat
        in videos shorter than `num_frames`) and "fps" for a rate. "uniform" is the rule of the published LLaVA
        evaluations, "fps" that of the LLaVA-OneVision processor.
      num_frames: wanted frames; "llava_video_upto", "molmo2" and "hf_molmo2" take it as the most that are allowed.
      fps: wanted frames per second.
      indices: explicit frame indices, in any order; negative ones are refused.

    Raises:
      JvidpruneError: not exactly one wish, an unknown rule, a rule that cannot serve the wish, an index outside the
        video, or more frames wanted than the rule allows.
    """
    check_wish(rule, num_frames, fps, indices)
    if total < 1:
        raise JvidpruneError("a video without frames cannot be sampled.")
    if indices is not None:
        return _explicit(total, indices)
    if num_frames is None and not (math.isfinite(rate) and rate > 0):
        raise JvidpruneError(f"sampling by fps needs the frame rate of the file, which is given as {rate}.")
    chosen = reference_indices(total, rate, rule or ("uniform" if fps is None else "fps"), num_frames, fps)
    return chosen[chosen < total]


def reference_indices(total: int, rate: float, rule: Rule, num_frames: int | None, fps: float | None) -> Indices:
    """What the reference's rule returns: "hf_qwen2", "hf_molmo2" and "hf_video_llama_3" may end with `total`,
    which no file has.

    `sample_indices` leaves that one out; it comes from rounding, where total / (total / k) is above k in floats.
    """
    return np.asarray(_SAMPLERS[rule](total, rate, num_frames, fps), np.int64)


def check_wish(
    rule: str | None, num_frames: int | None, fps: float | None, indices: Sequence[int] | np.ndarray | None
) -> None:
    """Refuses a sampling wish that no video can meet, before a file is opened.

    Raises:
      JvidpruneError: not exactly one of the three, an unknown rule, or a rule that cannot serve the wish.
    """
    if sum(wish is not None for wish in (num_frames, fps, indices)) != 1:
        raise JvidpruneError("give exactly one of num_frames, fps and indices.")
    if rule is not None and rule not in RULES:
        raise JvidpruneError(f"there is no sampling rule {rule!r}; there are {', '.join(RULES)}.")
    if indices is not None and rule is not None:
        raise JvidpruneError(f"explicit indices leave nothing to sample for the rule {rule}.")
    if num_frames is not None and rule == "fps":
        raise JvidpruneError("the rule fps samples by a rate, not by a number of frames.")
    if fps is not None and rule in ("uniform", "llava_video_force", "llava_video_upto"):
        raise JvidpruneError(f"the rule {rule} samples a number of frames, not by a rate.")
    if num_frames is not None and not (isinstance(num_frames, numbers.Integral) and num_frames >= 1):
        raise JvidpruneError(f"at least one frame must be sampled, not {num_frames}.")
    if fps is not None and not (isinstance(fps, numbers.Real) and math.isfinite(fps) and fps > 0):
        raise JvidpruneError(f"fps must be above 0, not {fps}.")
    if indices is not None and len(indices) == 0:
        raise JvidpruneError("the list of explicit frame indices is empty.")


def _explicit(total: int, indices: Sequence[int] | np.ndarray) -> Indices:
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise JvidpruneError("explicit frame indices must be a list of whole numbers.")
    outside = chosen[(chosen < 0) | (chosen >= total)]
    if outside.size:
        raise JvidpruneError(f"frame {outside[0]} is outside the video, which has frames 0 to {total - 1}.")
    return chosen.astype(np.int64)


def _too_many(wanted: int, total: int, fewest: int = 1) -> JvidpruneError:
    allowed = f"{fewest} to {total // fewest * fewest}" if total >= fewest else f"at least {fewest}"
    return JvidpruneError(f"this rule cannot take {wanted} frames of a video of {total}; it takes {allowed}.")


def _hf_default(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """LLaVA-OneVision's processor: never reaches the last frame."""
    count = num_frames if num_frames is not None else max(1, int(total / rate * _known(fps)))
    if count > total:
        raise _too_many(count, total)
    return np.arange(count, dtype=np.int64) * total // count


def _hf_qwen2(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """The Qwen2-VL and Qwen2.5-VL processor: an even number of frames."""
    if num_frames is not None:
        count = round(num_frames / 2) * 2
    else:
        low, high = QWEN_FRAMES[0], min(QWEN_FRAMES[1], total) // 2 * 2
        count = math.floor(min(max(total / rate * _known(fps), low), high, total) / 2) * 2
    if count > total or count < 2:
        raise _too_many(count, total, 2)
    # The reference makes a float32 range with a stop: rounding lifts values just below an integer onto it in very long
    # videos, and appends a (count + 1)-th value in some short ones (total 300, count 14).
    return np.floor(np.arange(0, total, total / count).astype(np.float32))


def _hf_video_llama_3(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """The VideoLLaMA3 processor: that of Qwen2-VL for single frames, 180 at most where it goes by a rate."""
    count = num_frames
    if count is None:
        low, high = VIDEO_LLAMA_3_FRAMES[0], min(VIDEO_LLAMA_3_FRAMES[1], total)
        count = math.floor(min(max(total / rate * _known(fps), low), high))
    if count > total:
        raise _too_many(count, total)
    return np.floor(np.arange(0, total, total / count).astype(np.float32))


def _hf_internvl(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """The InternVL processor with its shift: the middles of equal stretches, rounded down."""
    count = num_frames if num_frames is not None else max(1, int(total / rate * _known(fps)))
    if count > total:
        raise _too_many(count, total)
    step = total / count
    # A float32 range; of very long videos the reference rounds some values otherwise, as the vectors of its machine do.
    return np.floor(np.arange(step / 2, total, step).astype(np.float32))


def _hf_qwen3(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """The Qwen3-VL processor: first and last frame included, the count may be odd, an explicit one is not clamped."""
    count = num_frames
    if count is None:
        count = min(max(int(total / rate * _known(fps)), QWEN_FRAMES[0]), QWEN_FRAMES[1], total)
    return np.linspace(0, total - 1, count).round()


def _qwen_utils(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """qwen-vl-utils: an even number of frames, first and last included."""
    if num_frames is not None:
        count = round(num_frames / 2) * 2
    else:
        # The upper limit is floored to even by the reference, which cannot be seen: the count is floored after it.
        low, high = QWEN_FRAMES[0], min(QWEN_FRAMES[1], total)
        count = math.floor(min(max(total / rate * _known(fps), low), high) / 2) * 2
    if not 2 <= count <= total:
        raise _too_many(count, total, 2)
    return _linspace32(total - 1, count).round()


def _linspace32(last: int, count: int) -> np.ndarray:
    """A float32 linspace from 0 as the reference's tensor library makes it: either half counted from its own end."""
    end = np.float32(last)
    step = end / np.float32(count - 1)
    place = np.arange(count, dtype=np.float32)
    return np.where(place < count // 2, step * place, end - step * (count - 1 - place))


def _llava_force(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """LLaVA evaluations with a fixed number of frames."""
    return np.floor(np.linspace(0, total - 1, int(_known(num_frames))))


def _llava_upto(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """LLaVA-Video without forcing: one frame a second, and the forced rule where that gives too many."""
    every_second = np.arange(0, total, _whole_rate(rate))
    return every_second if len(every_second) <= _known(num_frames) else _llava_force(total, rate, num_frames, fps)


def _molmo2(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """Molmo2's training: at most two frames a second, the last frame always, spread evenly where that is too many.

    The rounding is ours: to the nearest frame at two a second, down where frames are spread.
    """
    step = max(rate / (MOLMO2_RATE if fps is None else fps), 1.0)
    places = np.arange(0, total - 1, step)
    if num_frames is None or len(places) + 1 <= num_frames:
        chosen = np.round(places).astype(np.int64)
        return np.append(chosen[chosen < total - 1], total - 1)
    return np.floor(np.linspace(0, total - 1, num_frames)) if num_frames > 1 else np.array([total - 1])


def _hf_molmo2(total: int, rate: float, num_frames: int | None, fps: float | None) -> np.ndarray:
    """The processor of transformers' own class: at most two frames a second, evenly from the first, not to the last."""
    if fps is not None:
        count = int(total / rate * fps)
    else:
        count = int(_known(num_frames))
        if rate > MOLMO2_RATE:
            count = min(count, int(total / rate * MOLMO2_RATE))
    count = max(min(count, total), 1)
    # A float32 range with a stop, as in the Qwen2-VL processor.
    return np.floor(np.arange(0, total, total / count).astype(np.float32))


def _known(wish: int | float | None) -> int | float:
    assert wish is not None, "check_wish leaves a rule only what it can serve"
    return wish


def _whole_rate(rate: float) -> int:
    whole = round(rate) if math.isfinite(rate) else 0
    if whole < 1:
        raise JvidpruneError(f"llava_video_upto takes a frame a second, which a rate of {rate} does not allow.")
    return whole


_SAMPLERS: dict[str, Callable[[int, float, int | None, float | None], np.ndarray]] = {
    "uniform": _llava_force,
    "fps": _hf_default,
    "hf_default": _hf_default,
    "hf_qwen2": _hf_qwen2,
    "hf_qwen3": _hf_qwen3,
    "qwen_utils": _qwen_utils,
    "llava_video_force": _llava_force,
    "llava_video_upto": _llava_upto,
    "molmo2": _molmo2,
    "hf_molmo2": _hf_molmo2,
    "hf_video_llama_3": _hf_video_llama_3,
    "hf_internvl": _hf_internvl,
}


def llava_times(total: int, rate: float, num_frames: int, *, force: bool = True) -> tuple[str, str]:
    """The strings of LLaVA-Video's time instruction: frame times "0.00s,1.40s", and the length of the video "10.00".

    Args:
      total: frames in the file.
      rate: frames per second of the file.
      num_frames: frames sampled, or the most allowed without `force`.
      force: the rule "llava_video_force", otherwise "llava_video_upto", whose one-a-second frames are timed by the
        rounded rate (a quirk of the reference).
    """
    rule: Rule = "llava_video_force" if force else "llava_video_upto"
    indices = sample_indices(total, rate, rule=rule, num_frames=num_frames)
    per_second = not force and len(np.arange(0, total, _whole_rate(rate))) <= num_frames
    return time_string(indices / (_whole_rate(rate) if per_second else rate)), f"{total / rate:.2f}"


def time_string(times: Float64[np.ndarray, "frames"]) -> str:
    """Frame times in seconds as LLaVA-Video's prompt lists them: "0.00s,1.40s"."""
    return ",".join(f"{seconds:.2f}s" for seconds in times.tolist())


def pair_timestamps(indices: Indices, rate: float = DEFAULT_RATE) -> list[float]:
    """Seconds of the grid frames of Qwen3-VL: the mean of the times of both frames of a pair.

    Args:
      indices: (frames,) indices in the file; an odd number repeats the last.
      rate: frames per second of the file.
    """
    return pair_means([index / rate for index in np.asarray(indices).tolist()])


def pair_means(times: Sequence[float]) -> list[float]:
    """The means of pairs of times; the last of an odd number stands twice."""
    times = [*times, *times[-1:]] if len(times) % 2 else times
    return [(first + second) / 2 for first, second in zip(times[::2], times[1::2], strict=True)]


def stamp(seconds: float) -> str:
    """The text that stands before a grid frame of Qwen3-VL."""
    return f"<{seconds:.1f} seconds>"
