"""When the frames of a file are shown, and how many a second that is: from their own times, wherever there are any.

Average rates are what a container or the decoder's library makes up from its first packets. They are kept where the
times agree, so that a constant rate stays the number that it is (30000/1001), and are left where they do not:
recordings of browsers, raw DV, screen captures that drop what stands still.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float64, Int64

from jvidprune.video.sampling import DEFAULT_RATE

# Times that differ by less than this many seconds are equal: most containers round to milliseconds.
_ROUNDING = 0.002
# A last frame that is shown for less than this and for less than half of the usual gap has a made-up duration.
_SHORTEST = 0.005


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of a file's frames.

    Attributes:
      seconds: (frames,) float64 of each frame from the first one; `arange / rate` where `regular`.
      start: seconds of the first frame by the file's own clock.
      rate: frames a second, frames over duration.
      regular: whether the frames keep this rate.
      last: seconds of the last frame by the file's own clock.
    """

    seconds: Float64[np.ndarray, "frames"]
    start: float
    rate: float
    regular: bool
    last: float

    @property
    def duration(self) -> float:
        """Seconds of all frames, the last one's own included."""
        return len(self.seconds) / self.rate


def timing(
    frames: int,
    times: Int64[np.ndarray, "frames"] | None,
    lasts: Int64[np.ndarray, "frames"],
    unit: float,
    average: float | None,
    guess: float | None = None,
    *,
    exact: bool = False,
) -> Timing:
    """The timing of a file.

    Args:
      frames: how many there are.
      times: of their presentation, rising, in units of the stream; None where the file has none.
      lasts: (frames,) how long each is shown in the same units, 0 where nothing is said.
      unit: seconds.
      average: rate that the container or the decoder's library gives.
      guess: another one, for files without times, durations and average.
      exact: the container has the duration of every frame (mp4), so that the last one's is believed however short.
    """
    average = _rate(average)
    if times is not None and unit <= 0:
        times = None
    if times is None or len(times) == 1:
        shown = float(lasts.sum()) * unit if (lasts > 0).all() else 0.0
        if times is not None and shown < _SHORTEST:
            shown = 0.0
        rate = average or _rate(guess) or DEFAULT_RATE
        if shown > 0 and abs(frames / rate - shown) > _ROUNDING:
            rate = frames / shown
        start = 0.0 if times is None else float(times[0]) * unit
        seconds = np.arange(frames) / rate
        return Timing(seconds, start, rate, True, start + float(seconds[-1]))
    # In floats: hostile times are further apart than integers go.
    measured = (times.astype(np.float64) - float(times[0])) * unit
    gaps = np.diff(measured)
    last = float(lasts[-1]) * unit
    usual = last >= 0.5 * float(np.median(gaps))
    # The frames of a grid that leaves places out (an AVI file that drops frames) are shorter than most gaps.
    if not (usual or (exact and last > 0)) and last < max(0.5 * float(gaps.min()), _SHORTEST):
        last = float(measured[-1]) / (frames - 1)
    duration = float(measured[-1]) + last
    tick = max(1.5 * unit, _ROUNDING)
    rate = frames / duration
    if average:
        constant = _keeps(measured, average, tick) and abs(last - 1 / average) < 0.5 / average
        rate = average if constant or abs(frames / average - duration) <= min(tick, 0.25 / average) else rate
    regular = _keeps(measured, rate, tick)
    start = float(times[0]) * unit
    seconds = np.arange(frames) / rate if regular else measured
    return Timing(seconds, start, rate, regular, start + float(measured[-1]))


def _keeps(seconds: Float64[np.ndarray, "frames"], rate: float, tick: float) -> bool:
    return bool(np.abs(seconds - np.arange(len(seconds)) / rate).max() <= min(tick, 0.25 / rate))


def _rate(rate: float | None) -> float | None:
    return float(rate) if rate and math.isfinite(rate) and rate > 0 else None
