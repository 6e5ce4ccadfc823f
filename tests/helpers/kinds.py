"""Files of the kinds that users bring, and what is right for each."""

from helpers.places import TESTS

CASES = TESTS / "data" / "videos"


# frames, duration, frames a second, first and last time by the file's clock, number of the stream
RIGHT = {
    "base.mp4": (60, 6.0, 10.0, 0.0, 5.9, 0),
    "mr.webm": (60, 6.0, 10.0, 0.005, 5.906, 0),
    "slides.mkv": (5, 50.0, 0.1, 0.0, 40.0, 0),
    "drop.avi": (11, 5.7, 11 / 5.7, 0.0, 5.6, 0),
    "hflip.mp4": (60, 6.0, 10.0, 0.0, 5.9, 0),
    "coverfirst.mkv": (60, 6.0, 10.0, 0.2, 6.1, 1),
    "vp8alt2.webm": (60, 6.0, 10.0, 0.0, 5.9, 0),
    "one.mp4": (1, 0.1, 10.0, 0.0, 0.0, 0),
    "x.webp": (60, 6.0, 10.0, 0.0, 5.9, 0),
}
