"""From a wish about the frames of any video to the frames that one video can give.

The rules of `sampling` are those of the references, which refuse a video that is too short, or show its frames several
times. A wish is a ceiling instead: it is clamped to the frames there are, with the rounding of its rule, so that every
video can meet it.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.video.sampling import (
    MOLMO2_RATE,
    PAIRED,
    QWEN_FRAMES,
    RATE_RULES,
    RULES,
    UP_TO,
    VIDEO_LLAMA_3_FRAMES,
    Indices,
    Rule,
    check_wish,
    reference_indices,
    sample_indices,
)


@dataclasses.dataclass(frozen=True)
class FrameWish:
    """Which frames of a video are wanted.

    A number of frames is rounded as its rule rounds it (Qwen2.5-VL makes 8 of 7), then clamped to the video: to all of
    its frames, or to an even number of them where the rule gives even ones. A rate gives as many frames as its rule
    says, between the fewest and the most, the most first where they contradict each other. The families that read
    frames in pairs get one frame twice where only one is there, or only one is wanted.

    Attributes:
      frames: how many; of a rate, the most.
      fps: frames a second, sampled by the rule that belongs to `rule` (`sampling.RATE_RULES`).
      rule: of `sampling.RULES`; those of `sampling.UP_TO` know a rate of their own and take `frames` as the most.
      fewest: of a rate; by default the rule's own (4 on the Qwen families and VideoLLaMA3, else 1).
      most: of a rate; by default the rule's own (768 on the Qwen families, 180 on VideoLLaMA3, else any number).
      fastest: frames a second at most where the rule has such a limit (Molmo2); by default its own, 2.
      repeat: every video gives exactly `frames`, a shorter one some of its own several times, as in the published LLaVA
        evaluations; training needs it, whose rows have one size.
      pictures: a still picture is taken for a video of one frame; otherwise it is refused.

    Raises:
      JvidpruneError: neither frames nor a rate, a number below 1, a rate not above 0, fewest above most, an unknown
        rule, or one that needs a rate without a rate.
    """

    frames: int | None = None
    fps: float | None = None
    rule: Rule = "uniform"
    fewest: int | None = None
    most: int | None = None
    fastest: float | None = None
    repeat: bool = False
    pictures: bool = True

    def __post_init__(self):
        if self.fps is None:
            check_wish(self.rule, self.frames, None, None)
        else:
            check_wish("fps" if self.rule in RULES else self.rule, None, self.fps, None)
            check_wish(None, 1 if self.frames is None else self.frames, None, None)
        if not 1 <= (self.fewest or 1) <= (self.most or math.inf):
            raise JvidpruneError(
                f"fewest and most frames of a video must be at least 1 and in order, not {self.fewest} to {self.most}."
            )

    def check_picture(self, path: Path) -> None:
        """Refuses a file that is a still picture where those are no videos of one frame.

        Raises:
          JvidpruneError: they are not.
        """
        if not self.pictures:
            raise JvidpruneError(
                f"{path} is a picture, not a video, and this model has no way to read pictures: give a video, which "
                "may have one frame."
            )

    def indices(self, total: int, rate: float) -> Indices:
        """Frame indices in [0, total), rising.

        Args:
          total: frames of the video, at least 1.
          rate: its frames per second.

        Raises:
          JvidpruneError: no frames, or a rate of the video that is needed and not known.
        """
        if total < 1:
            raise JvidpruneError("a video without frames cannot be sampled.")
        by_rate = self.fps is not None or self.rule in UP_TO
        if by_rate and not (math.isfinite(rate) and rate > 0):
            raise JvidpruneError(f"sampling by fps needs the frame rate of the file, which is given as {rate}.")
        chosen = self._at_rate(total, rate) if by_rate else self._numbered(total)
        if self.repeat and self.frames is not None and len(chosen) != self.frames:
            return reference_indices(total, rate, "llava_video_force", self.frames, None)
        return chosen

    def _numbered(self, total: int) -> Indices:
        wanted = self.frames or 1
        if self.rule in _EVEN:
            wanted = min(round(wanted / 2) * 2, total // 2 * 2)
        return _count(total, self.rule, min(wanted, total))

    def _at_rate(self, total: int, rate: float) -> Indices:
        rule = self.rule if self.fps is None else RATE_RULES.get(self.rule, self.rule)
        own_low, own_high = QWEN_FRAMES if rule in PAIRED else _OWN_LIMITS.get(rule, (1, total))
        low = own_low if self.fewest is None else self.fewest
        high = min(own_high if self.most is None else self.most, self.frames or total, total)
        if rule == "llava_video_upto":
            step = max(1, round(min(rate / (self.fps or 1.0), total)))
            wanted = -(-total // step)
            if low <= wanted <= high:
                return np.arange(0, total, step, dtype=np.int64)
            return _count(total, "uniform", min(max(wanted, low), high))
        fastest = MOLMO2_RATE if self.fastest is None else self.fastest
        if rule == "molmo2":
            # Slower than a frame a video there are its first and last.
            fps = max(min(self.fps or fastest, fastest), rate / total)
            found = reference_indices(total, rate, rule, high, fps)
            return found if low <= len(found) else _count(total, "uniform", min(low, high))
        if rule == "hf_molmo2" and self.fps is None:
            wanted = high if rate <= fastest else total / rate * fastest
        else:
            wanted = total / rate * (self.fps or 1.0)
        if rule in _EVEN:
            # qwen-vl-utils rounds the fewest up to a pair.
            low += low % 2 if rule == "qwen_utils" else 0
            return _count(total, rule, math.floor(min(max(wanted, low), high) / 2) * 2)
        return _count(total, rule, int(min(max(wanted, low), high)))


_EVEN = ("qwen_utils", "hf_qwen2")

_OWN_LIMITS: dict[str, tuple[int, int]] = {"hf_video_llama_3": VIDEO_LLAMA_3_FRAMES}


def _count(total: int, rule: Rule, count: int) -> Indices:
    """So many frames, which the video has: 0 or 1 are a pair of the first where the family reads pairs."""
    if rule in PAIRED and count < 2:
        return np.zeros(2, np.int64)
    # The number is decided: at a frame a second no rule lowers it.
    return sample_indices(total, 1.0, rule="hf_default" if rule == "fps" else rule, num_frames=max(count, 1))
