"""Files of the kinds that users bring: what a player would show of them is what is read, at the times they say."""

import dataclasses
import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.films import encode_with, numbered, numbers_of
from helpers.kinds import (
    CASES,
    RIGHT,
)
from PIL import Image, ImageOps

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets.videos import read_clip
from jvidprune.llm.prompts import molmo2, qwen
from jvidprune.llm.prompts.llava import time_instruction
from jvidprune.video import decode, display, index
from jvidprune.video.encode import write_mp4
from jvidprune.video.timing import timing
from jvidprune.video.wish import FrameWish


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_files_that_failed_are_read_right(name):
    frames, duration, fps, first, last, stream = RIGHT[name]
    info = decode.probe(CASES / name)
    assert (info.frames, info.stream, info.rotation, info.mirrored) == (frames, stream, 0, name == "hflip.mp4")
    assert (info.width, info.height, info.picture) == (160, 96, False)
    assert [info.duration, info.fps] == pytest.approx([duration, fps], rel=1e-3)
    assert [info.first, info.last] == pytest.approx([first, last], abs=1e-6)
    assert info.duration == pytest.approx(info.frames / info.fps)
    clip = decode.read_frames(CASES / name, indices=range(frames))
    assert clip.total == frames
    assert clip.duration == info.duration
    assert clip.start + clip.timestamps[-1] == pytest.approx(last, abs=1e-6)
    assert (np.diff(clip.timestamps) > 0).all()
    a_second = decode.read_frames(CASES / name, wish=FrameWish(fps=1.0, rule="qwen_utils", fewest=1))
    assert len(a_second.indices) == {"slides.mkv": 4, "drop.avi": 4, "one.mp4": 2}.get(name, 6)


def test_a_recording_without_a_rate_gives_a_frame_a_second_and_true_stamps():
    clip = decode.read_frames(CASES / "mr.webm", fps=1.0)
    assert len(clip.indices) == 6
    with av.open(str(CASES / "mr.webm")) as file:
        real = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
    assert clip.timestamps.tolist() == pytest.approx([real[i] - real[0] for i in clip.indices])
    assert molmo2.stamps(clip) == [f"{time:.1f} " for time in clip.timestamps]
    mean = [(clip.timestamps[i] + clip.timestamps[i + 1]) / 2 for i in (0, 2, 4)]
    assert qwen.stamps(clip) == [f"<{time:.1f} seconds>" for time in mean]
    assert ",".join(f"{time:.2f}s" for time in clip.timestamps) in time_instruction(clip)
    assert "lasts for 6.00 seconds" in time_instruction(clip)
    assert qwen.step_seconds(clip, 2) == pytest.approx(2.0, rel=1e-3)


def test_mirrored_files_are_mirrored_back():
    plain = decode.read_frames(CASES / "base.mp4", num_frames=3).frames
    mirrored = decode.read_frames(CASES / "hflip.mp4", num_frames=3).frames
    assert np.array_equal(mirrored, plain[:, :, ::-1])


@pytest.mark.parametrize("jump", [1, 32])
def test_frames_that_are_never_shown_do_not_count(jump, monkeypatch):
    """64 packets, 60 frames: every way to ask gives the frames of a player's full decode."""
    path = CASES / "vp8alt2.webm"
    with av.open(str(path)) as file:
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    monkeypatch.setattr(decode, "_JUMP_FRAMES", jump)
    for wish in ({"indices": [59, 3, 2, 31]}, {"num_frames": 7}, {"fps": 2.0}, {"num_frames": 60}):
        clip = decode.read_frames(path, **wish)
        assert clip.total == 60
        assert all(np.array_equal(frame, shown[i]) for frame, i in zip(clip.frames, clip.indices, strict=True))
        assert clip.timestamps.tolist() == pytest.approx((clip.indices / 10).tolist())


def test_hidden_frames_are_told_by_their_headers():
    hidden = []
    with av.open(str(CASES / "vp8alt2.webm")) as file:
        for packet in file.demux(video=0):
            data = bytes(packet)
            if data:
                hidden.append(index.shows_nothing(data, "vp8"))
    assert (len(hidden), sum(hidden)) == (64, 4)
    # VP9: marker 10, profile 00, no repeat, then type and whether it is shown; a repeat; a superframe of two.
    assert index.shows_nothing(bytes([0b10000100, 0, 1]), "vp9")
    assert not index.shows_nothing(bytes([0b10000110, 0, 1]), "vp9")
    assert not index.shows_nothing(bytes([0b10001000, 0, 1]), "vp9")
    # Profile 3 has one more bit before them.
    assert index.shows_nothing(bytes([0b10110010, 0, 1]), "vp9")
    assert not index.shows_nothing(bytes([0b10110011, 0, 1]), "vp9")
    assert not index.shows_nothing(bytes([0b10000100, 0, 0xC1, 2, 1, 0xC1]), "vp9")


@pytest.mark.parametrize("rate", [1, 8, 10, 23.976, Fraction(24000, 1001), 25, Fraction(30000, 1001), 50, 60, 0.1])
@pytest.mark.parametrize("unit", [1e-3, 1 / 90000, None])
def test_a_constant_rate_stays_the_number_that_it_is(rate, unit):
    """Rounded to the ticks of any container, in a film of any length; a drifting or missing rate does not survive."""
    rate = float(rate)
    unit = unit or 1 / rate
    for frames in (1, 2, 3, 7, 300, 100_000):
        times = np.round(np.arange(frames) / rate / unit).astype(np.int64) + 12345
        lasts = np.full(frames, max(1, round(1 / rate / unit)), np.int64)
        found = timing(frames, times, lasts, unit, rate)
        assert (found.rate, found.regular, found.duration) == (rate, True, frames / rate)
        assert np.array_equal(found.seconds, np.arange(frames) / rate)
        for wrong in (None, 1000.0, 60_000.0, rate / 2):
            found = timing(frames, times, lasts, unit, wrong, wrong)
            assert found.rate == pytest.approx(rate, rel=0.05 if frames < 10 else 1e-3)
            assert found.duration == pytest.approx(frames / rate, rel=0.05 if frames < 10 else 1e-3)


@pytest.mark.parametrize("name", ["film.mkv", "film.webm", "film.mp4", "film.mov", "film.avi", "film.flv"])
def test_times_are_the_files_own_whatever_it_says_of_its_rate(tmp_path, name):
    codec = {"film.webm": "libvpx", "film.avi": "mpeg4", "film.flv": "flv"}.get(name, "libx264")
    rng = np.random.default_rng(len(name))
    for rate in (10, 25, 1000):
        times = np.cumsum(rng.integers(1, 9, 14)) * 40
        frames = numbered(14)
        path = encode_with(
            tmp_path / f"{rate}-{name}", frames, codec, rate=rate, times=times.tolist(), bf="0", b="3000000"
        )
        with av.open(str(path)) as file:
            real = np.asarray([float(frame.pts * frame.time_base) for frame in file.decode(video=0)])
        info = decode.probe(path)
        clip = decode.read_frames(path, indices=range(14))
        assert info.frames == clip.total == len(real) == 14
        assert clip.timestamps == pytest.approx(real - real[0], abs=2e-3)
        assert (info.first, info.last) == pytest.approx((real[0], real[-1]), abs=1e-6)
        assert real[-1] - real[0] < info.duration < (real[-1] - real[0]) * 1.2
        assert info.fps == pytest.approx(14 / info.duration)
        assert numbers_of(clip.frames).tolist() == list(range(14))


@pytest.mark.parametrize(
    ("times", "duration"),
    [
        ([0, 100, 30_000], 30.1),  # a screen that stands still
        ([0, 30_000, 30_100], 30.2),
        ([0, 1, 2, 60_000], 60.1),
    ],
)
@pytest.mark.parametrize("name", ["screen.mkv", "screen.webm", "screen.mp4"])
def test_screens_that_stand_still_last_as_long_as_they_do(tmp_path, name, times, duration):
    codec = "libvpx" if name == "screen.webm" else "libx264"
    path = encode_with(tmp_path / name, numbered(len(times)), codec, times=times)
    info = decode.probe(path)
    assert (info.frames, info.regular) == (len(times), False)
    assert info.duration == pytest.approx(duration)
    clip = decode.read_frames(path, num_frames=len(times))
    assert clip.timestamps.tolist() == pytest.approx([time / 1000 for time in times])


@pytest.mark.parametrize("name", ["still.mkv", "still.webm", "still.avi", "still.mp4", "still.mov"])
def test_one_frame_lasts_as_long_as_the_file_says(tmp_path, name):
    codec = {"still.webm": "libvpx", "still.avi": "mpeg4"}.get(name, "libx264")
    info = decode.probe(encode_with(tmp_path / name, numbered(1), codec, rate=Fraction(1, 10)))
    assert (info.frames, info.duration, info.picture) == (1, pytest.approx(10), False)


def test_a_film_that_starts_late_or_shows_its_last_frame_for_long(tmp_path):
    late = decode.probe(encode_with(tmp_path / "late.mkv", numbered(5), times=[5000, 5100, 5200, 5300, 5400]))
    assert (late.first, late.last, late.fps, late.duration) == pytest.approx((5.0, 5.4, 10.0, 0.5))
    early = encode_with(tmp_path / "early.mp4", numbered(12), bf="2")
    data = bytearray(early.read_bytes())
    # The edit list of the file leaves its first three frames out: they are decoded, and not shown.
    place = data.index(b"elst") + 4
    assert struct.unpack(">II", data[place : place + 8]) == (0, 1)
    before = struct.unpack(">i", data[place + 12 : place + 16])[0]
    with av.open(str(early)) as file:
        tick = file.streams.video[0].time_base
    data[place + 12 : place + 16] = struct.pack(">i", before + round(0.3 / float(tick)))
    early.write_bytes(data)
    with av.open(str(early)) as file:
        shown = [frame.pts * float(frame.time_base) for frame in file.decode(video=0)]
    clip = decode.read_frames(early, indices=range(len(shown)))
    assert decode.probe(early).frames == clip.total == len(shown) == 9
    assert numbers_of(clip.frames).tolist() == list(range(3, 12))
    assert clip.timestamps.tolist() == pytest.approx([i / 10 for i in range(9)])


@pytest.mark.parametrize(("height", "rate", "pixels"), [(576, 25, "yuv420p"), (480, Fraction(30000, 1001), "yuv411p")])
def test_raw_dv_has_the_rate_of_its_frames(tmp_path, height, rate, pixels):
    path = tmp_path / "film.dv"
    write(path, [("dvvideo", numbered(6, height, 720), rate, {}, pixels, None)])
    info = decode.probe(path)
    assert (info.frames, info.fps, info.duration) == (6, pytest.approx(float(rate)), pytest.approx(6 / float(rate)))
    path.write_bytes(path.read_bytes()[:-50_000])
    with pytest.raises(JvidpruneError, match="cut off"):
        decode.probe(path)


def test_streams_without_times_are_counted_and_keep_their_own_rate(tmp_path):
    path = encode_with(tmp_path / "film.h264", numbered(20), bf="2")
    info = decode.probe(path)
    assert (info.frames, info.fps, info.duration) == (20, pytest.approx(10), pytest.approx(2))
    clip = decode.read_frames(path, indices=[3, 19, 0])
    assert numbers_of(clip.frames).tolist() == [3, 19, 0]
    assert clip.timestamps.tolist() == pytest.approx([0.3, 1.9, 0])
    whole = path.read_bytes()
    for length in (len(whole) * np.asarray([0.55, 0.83, 0.97])).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(JvidpruneError, match="is damaged: frame"):
            decode.read_frames(path)


def write(path, streams, **options):
    """A file of several video streams: (codec, frames, rate, codec options, pixel format, disposition)."""
    with av.open(str(path), "w", options=options) as out:
        made = []
        for codec, frames, rate, settings, pixels, disposition in streams:
            stream = out.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
            stream.codec_context.options = settings
            if disposition is not None:
                stream.disposition = disposition
            made.append(stream)
        for stream, (_, frames, *_) in zip(made, streams, strict=True):
            for picture in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
    return path


WHOLE = {
    "film.mp4": ("libx264", {"bf": "2"}, {"movflags": "faststart"}),
    "late.mp4": ("libx264", {}, {}),
    "pieces.mp4": ("libx264", {"g": "5"}, {"movflags": "frag_keyframe+empty_moov"}),
    "film.mov": ("mjpeg", {"strict": "unofficial"}, {}),
    "film.mkv": ("libx264", {"bf": "2"}, {}),
    "film.webm": ("libvpx", {}, {}),
    "live.webm": ("libvpx", {"g": "5"}, {"live": "1"}),
    "film.avi": ("mpeg4", {}, {}),
    "film.ts": ("libx264", {}, {}),
    "film.gif": ("gif", {}, {}),
    "film.wmv": ("wmv2", {}, {}),
    "film.flv": ("flv", {}, {}),
    "film.apng": ("apng", {}, {}),
    "film.webp": ("libwebp_anim", {}, {}),
}


@pytest.mark.parametrize("rate", [10, Fraction(1, 10), 3])
@pytest.mark.parametrize("name", sorted(WHOLE))
def test_whole_files_are_whole_and_cut_ones_are_not(tmp_path, name, rate):
    """Slides and films alike; wherever a file ends early, no number of frames is given as if it were all."""
    codec, settings, options = WHOLE[name]
    if codec in ("flv", "wmv2") and rate != 10:
        pytest.skip("these encoders know no such rate")
    frames = numbered(15)[..., ::-1] if codec == "libwebp_anim" else numbered(15)
    pixels = {"gif": "rgb8", "mjpeg": "yuvj420p", "apng": "rgb24"}.get(codec, "yuv420p")
    path = write(tmp_path / name, [(codec, frames, rate, settings, pixels, None)], **options)
    info = decode.probe(path)
    if codec != "libwebp_anim":
        assert info.frames == 15
        assert [info.fps, info.duration] == pytest.approx([float(rate), 15 / float(rate)], rel=1e-3)
    assert decode.read_frames(path, num_frames=5).total == info.frames
    whole = path.read_bytes()
    if name not in ("film.ts", "film.flv"):
        path.write_bytes(whole + bytes(64))
        assert decode.probe(path).frames == info.frames
    for length in {
        len(whole) - 1 - 4 * (name == "film.flv"),
        *(len(whole) * np.linspace(0.05, 0.99, 14)).astype(int).tolist(),
    }:
        if name == "film.ts" and length % 188 == 0:
            continue
        path.write_bytes(whole[:length])
        with pytest.raises(JvidpruneError) as caught:
            decode.read_frames(path, num_frames=5)
        assert "\n" not in str(caught.value), length
        with pytest.raises(JvidpruneError) as again:
            decode.probe(path)
        assert str(again.value) == str(caught.value)


MATRICES = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0)]
MATRICES += [(0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_display_matrices_are_applied_whole(tmp_path, matrix, scale):
    """Pixel by pixel: column x and row y stand at (a x + c y, b x + d y), moved so that all are at 0 or above."""
    path = encode_with(tmp_path / "film.mp4", numbered(3, 32, 64))
    plain = decode.read_frames(path, indices=[1]).frames[0]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(65536 * scale * value) for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    a, b, c, d = matrix
    y, x = np.mgrid[:32, :64]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    expected = np.zeros((row.max() + 1, column.max() + 1, 3), np.uint8)
    expected[row, column] = plain
    assert np.array_equal(decode.read_frames(path, indices=[1]).frames[0], expected)
    info = decode.probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.mirrored == (a * d - b * c < 0)
    assert display.Display(info.rotation, info.mirrored) == display.from_matrix(*matrix)


def test_a_matrix_that_says_nothing_turns_nothing():
    assert display.from_matrix(0, 0, 0, 0) == display.Display()
    for degrees in range(0, 360, 10):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        assert display.from_matrix(cos, sin, -sin, cos).rotation == round(degrees / 90) % 4 * 90


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("order", ["before", "behind"])
def test_covers_are_not_the_film(tmp_path, suffix, order):
    """A picture without the flag of a cover, first or last, marked as the default by the writer or not."""
    film = ("libx264", numbered(12), 10, {}, "yuv420p", None)
    cover = ("mjpeg", numbered(1, 96, 128), 10, {"strict": "unofficial"}, "yuvj420p", None)
    path = write(tmp_path / f"film{suffix}", [cover, film] if order == "before" else [film, cover])
    info = decode.probe(path)
    assert (info.frames, info.width, info.stream) == (12, 64, int(order == "before"))
    assert numbers_of(decode.read_frames(path, indices=[0, 11]).frames).tolist() == [0, 11]


def test_the_stream_that_a_player_would_show(tmp_path):
    default, none = av.stream.Disposition.default, av.stream.Disposition(0)
    small, large = numbered(6, 32, 48), numbered(8, 64, 96)

    def chosen(*streams):
        name = tmp_path / f"film{len(list(tmp_path.iterdir()))}.mkv"
        made = [("libx264", frames, 10, {}, "yuv420p", mark) for frames, mark in streams]
        info = decode.probe(write(name, made, default_mode="passthrough"))
        return info.stream, info.frames, info.why

    assert chosen((large, none), (small, default)) == (1, 6, "of 2 videos the one marked as the default")
    assert chosen((small, default), (large, none))[:2] == (0, 6)
    assert chosen((small, none), (large, none)) == (1, 8, "of 2 videos the one that is largest")
    assert chosen((small, default), (large, default), (small, none))[:2] == (1, 8)
    assert chosen((large, none), (large, none))[:2] == (0, 8)


NAMES = [
    "a:b.mp4", "concat:x.mp4", "http:x.mp4", "file:x.mp4", "100%d.mp4", "%03d.mp4", "a b.mp4", "ünï—日本.mp4", "-x.mp4",
    "--help.mp4", "a\nb.mp4", "it's \"so\".mp4", "a?b#c|d.mp4", "data:;base64,x.mp4", "none", "~x.mp4", "x%20y.mp4",
    "pipe:", "subfile,,start,1,end,2,,:x", "[a](b).mp4", os.fsdecode(b"\xff\xfe.mp4"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_path_is_a_path(tmp_path, monkeypatch, name):
    shutil.copy(CASES / "one.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, Path(name), str(tmp_path / name)):
        assert decode.probe(path).frames == len(decode.read_frames(path, indices=[0]).frames) == 1


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "-x.mp4", "http:x.mp4"])
def test_clips_are_written_under_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert decode.probe(write_mp4(name, numbered(2), 8)).frames == 2
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.mp4", "http://localhost/x.mp4", "concat:a|b"])
def test_names_of_nothing_are_missing_files(name):
    with pytest.raises(JvidpruneError, match="no such video file"):
        decode.probe(name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".ppm"])
def test_a_still_picture_is_said_to_be_one(tmp_path, suffix):
    path = tmp_path / f"still%d{suffix}"
    Image.fromarray(numbered(2, 96, 128)[1]).save(path)
    info = decode.probe(path)
    assert (info.picture, info.frames, info.width, info.height) == (True, 1, 128, 96)
    clip = decode.read_frames(path, num_frames=32, rule="uniform")
    assert (clip.picture, clip.frames.shape) == (True, (1, 96, 128, 3))
    assert numbers_of(clip.frames).tolist() == [1]
    for read in (decode.read_frames, read_clip):
        assert len(read(path, wish=FrameWish(32)).frames) == 1
        with pytest.raises(JvidpruneError, match="is a picture, not a video"):
            read(path, wish=FrameWish(32, pictures=False))
    assert not decode.probe(CASES / "one.mp4").picture


def test_photographs_stand_upright(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        picture.save(path, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert np.array_equal(decode.read_frames(path, num_frames=1).frames[0], expected)
        assert decode.probe(path).width == expected.shape[1]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_videos(tmp_path, suffix):
    pictures = [Image.fromarray(frame) for frame in numbered(5, 96, 128)]
    shown = [100, 200, 100, 300, 200]
    path = tmp_path / f"film{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=shown, loop=0, **options)
    info = decode.probe(path)
    assert (info.picture, info.frames) == (False, 5)
    assert [info.duration, info.fps] == pytest.approx([0.9, 5 / 0.9])
    clip = decode.read_frames(path, wish=FrameWish(32))
    assert clip.timestamps.tolist() == pytest.approx([0, 0.1, 0.3, 0.4, 0.7])
    assert np.abs(clip.frames.astype(int) - numbered(5, 96, 128)).max() <= (0 if suffix != ".gif" else 8)


def test_a_damaged_picture_is_no_damaged_video(tmp_path):
    for suffix in (".png", ".jpg", ".webp"):
        path = tmp_path / f"still{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:4000])
        with pytest.raises(JvidpruneError, match="cut off"):
            decode.read_frames(path)


def test_parts_of_a_film_are_cut_out_by_its_times(tmp_path):
    """Slides that stand still for 10 s at the start: seconds 10 to 11 are the film behind them."""
    times = [0, *range(10_000, 12_000, 100)]
    path = encode_with(tmp_path / "film.mkv", numbered(21), times=times)
    clip = read_clip(path, wish=FrameWish(4), start=10.0, end=11.0)
    assert clip.timestamps.min() >= 10.0
    assert clip.timestamps.max() <= 11.0
    assert clip.sampled_fps == pytest.approx(4.0)
    assert qwen.step_seconds(clip, 2) == pytest.approx(0.5)
    assert numbers_of(clip.frames).tolist() == clip.indices.tolist()


def test_clips_of_arrays_keep_their_numbers():
    indices = np.asarray([0, 7, 13, 14, 30])
    clip = decode.Clip(np.zeros((5, 2, 2, 3), np.uint8), indices, indices / 10.0, 10.0, 50)
    assert clip.regular
    assert qwen.stamps(clip) == ["<0.3 seconds>", "<1.4 seconds>", "<3.0 seconds>"]
    assert not dataclasses.replace(clip, timestamps=clip.timestamps + 0.01).regular
