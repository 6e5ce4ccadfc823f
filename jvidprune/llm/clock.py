"""LLaVA-Video's time instruction, text that its training put between the video and the question."""

from jvidprune.video.decode import Clip
from jvidprune.video.sampling import llava_times, time_string


def time_instruction(clip: Clip, *, rule: str = "llava_video_force") -> str:
    """The sentences of a clip: its length, the number of frames, and the time of each.

    Args:
      clip: what was sampled.
      rule: how; with "llava_video_upto" one-a-second frames of a constant rate are timed by the rounded rate, a quirk
        of the reference.
    """
    count = len(clip.indices)
    times, seconds = time_string(clip.timestamps), f"{clip.duration:.2f}"
    if rule == "llava_video_upto" and clip.regular:
        times, seconds = llava_times(clip.total, clip.fps, count, force=False)
    return (
        f"The video lasts for {seconds} seconds, and {count} frames are uniformly sampled from it. These frames are "
        f"located at {times}.Please answer the following questions related to this video."
    )


def with_times(question: str, clip: Clip, *, rule: str = "llava_video_force") -> str:
    """The question behind the time instruction; the published evaluations of LLaVA-Video leave the instruction out."""
    return f"{time_instruction(clip, rule=rule)}\n{question}"
