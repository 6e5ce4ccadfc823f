"""Reading and writing real files: generated clips, damaged files, limits, and the sentences they end in."""

import dataclasses
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from helpers.films import (
    encode_with,
    numbered,
    numbers_of,
)

from jvidprune.errors import JvidpruneError
from jvidprune.procedural import clips
from jvidprune.procedural.clips import ClipSpec
from jvidprune.video import decode, encode, index
from jvidprune.video.limits import Limits
from jvidprune.video.timing import timing


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return encode_with(tmp_path_factory.mktemp("films") / "film.mp4", numbered(), g="10", bf="2")


def test_written_frames_come_back(tmp_path):
    story = clips.render(ClipSpec(frames=12, size=(96, 128), noise=0.0))
    path = encode.write_mp4(tmp_path / "deep" / "clip.mp4", story.frames, 7.5)
    info = decode.probe(path)
    assert (info.frames, info.fps, info.width, info.height) == (12, 7.5, 128, 96)
    assert info.duration == pytest.approx(1.6)
    assert info.codec in ("h264", "mpeg4")
    clip = decode.read_frames(path, indices=range(12))
    assert clip.frames.shape == story.frames.shape
    assert clip.frames.dtype == np.uint8
    assert np.abs(clip.frames.astype(int) - story.frames).mean() < 6
    np.testing.assert_allclose(clip.timestamps, np.arange(12) / 7.5, atol=1e-3)
    assert os.listdir(path.parent) == ["clip.mp4"]


def test_mpeg4_serves_where_h264_cannot_be_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_encoder", lambda: "mpeg4")
    path = encode.write_mp4(tmp_path / "clip.mp4", numbered(9), 8)
    assert decode.probe(path).codec == "mpeg4"
    assert numbers_of(decode.read_frames(path, indices=range(9)).frames).tolist() == list(range(9))


def test_odd_sides_gain_a_repeated_edge(tmp_path):
    path = encode.write_mp4(tmp_path / "odd.mp4", numbered(3, 49, 63), 8)
    assert decode.read_frames(path, num_frames=3).frames.shape == (3, 50, 64, 3)


def test_any_order_and_repeats_give_the_frames_of_a_full_decode(film):
    everything = decode.read_frames(film, indices=range(40))
    assert numbers_of(everything.frames).tolist() == list(range(40))
    wanted = [39, 4, 4, 0, 21]
    seen = []
    clip = decode.read_frames(film, indices=wanted, progress=lambda done, of: seen.append((done, of)))
    assert np.array_equal(clip.frames, everything.frames[wanted])
    assert clip.indices.tolist() == wanted
    assert clip.timestamps.tolist() == pytest.approx([i / 10 for i in wanted])
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (clip.total, clip.fps, clip.sampled_fps) == (40, 10.0, pytest.approx(1.25))


def test_jumping_to_key_frames_changes_nothing(film, monkeypatch):
    monkeypatch.setattr(decode, "_JUMP_FRAMES", 1)
    jumps = []
    jump = decode._jump
    monkeypatch.setattr(decode, "_jump", lambda *args: jumps.append(jump(*args)) or jumps[-1])
    clip = decode.read_frames(film, indices=[2, 15, 16, 38])
    assert numbers_of(clip.frames).tolist() == [2, 15, 16, 38]
    assert [key is not None for key in jumps] == [False, True, False, True]


def test_rules_and_default_number_of_frames(film):
    assert decode.read_frames(film).indices.tolist() == np.linspace(0, 39, 32).astype(int).tolist()
    clip = decode.read_frames(film, fps=2.0, rule="qwen_utils")
    assert clip.indices.tolist() == np.linspace(0, 39, 8).round().astype(int).tolist()
    assert numbers_of(clip.frames).tolist() == clip.indices.tolist()
    assert len(decode.read_frames(film, num_frames=10**9, rule="llava_video_upto").indices) == 4


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".avi", "mpeg4", {"bf": "2", "b": "2000000"}),
        (".ts", "libx264", {}),
        (".mkv", "libx264", {"bf": "2"}),
        (".mov", "mjpeg", {}),
    ],
)
def test_containers_without_a_frame_count_or_times(tmp_path, suffix, codec, options):
    frames = numbered(20)
    path = tmp_path / f"film{suffix}"
    if codec == "mjpeg":
        options = {"strict": "unofficial", "q": "2"}
    encode_with(path, frames, codec, **options)
    clip = decode.read_frames(path, indices=[0, 7, 19])
    assert clip.total == decode.probe(path).frames == 20
    assert numbers_of(clip.frames).tolist() == [0, 7, 19]
    assert clip.timestamps.tolist() == pytest.approx([0, 0.7, 1.9], abs=1e-3)


def test_variable_frame_rate_keeps_presentation_times(tmp_path):
    times = [0, 100, 150, 400, 1000, 1100, 1900, 2000]
    path = encode_with(tmp_path / "vfr.mkv", numbered(8), times=times)
    clip = decode.read_frames(path, indices=[1, 3, 6])
    assert clip.total == 8
    assert clip.timestamps.tolist() == pytest.approx([0.1, 0.4, 1.9])
    assert numbers_of(clip.frames).tolist() == [1, 3, 6]


def test_a_container_that_promises_other_frames_is_counted(tmp_path, monkeypatch):
    """Packets that do not fit what the decoder gives must not shift the frames, and are believed by nobody any more."""
    film = encode_with(tmp_path / "film.mp4", numbered(), g="10", bf="2")
    real = index.list_packets

    def promising(*args):
        listing = real(*args)
        times = np.sort(np.append(listing.times, np.arange(7) * 1024 + 77))
        return dataclasses.replace(listing, times=times, total=47, timing=timing(47, times, times * 0, 1e-4, None))

    monkeypatch.setattr(index, "list_packets", promising)
    assert decode.probe(film).frames == 47
    clip = decode.read_frames(film, num_frames=5, rule="hf_qwen3")
    assert clip.total == 40
    assert numbers_of(clip.frames).tolist() == [0, 10, 20, 29, 39]
    assert decode.probe(film).frames == 40
    with pytest.raises(JvidpruneError, match="frame 46 is outside the video, which has frames 0 to 39"):
        decode.read_frames(film, indices=[46])


def test_rotated_films_stand_upright(film, tmp_path):
    """A display matrix that turns the picture by 90 degrees clockwise, as telephones write it."""
    data = bytearray(film.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    (tmp_path / "turned.mp4").write_bytes(data)
    upright = decode.read_frames(tmp_path / "turned.mp4", indices=[5]).frames
    assert np.array_equal(upright[0], np.rot90(decode.read_frames(film, indices=[5]).frames[0], -1))


def test_damaged_and_missing_files_end_in_a_sentence(film, tmp_path):
    whole = film.read_bytes()
    (tmp_path / "nothing.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "header.mp4").write_bytes(whole[:100])
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    sentences = {
        "missing.mp4": "no such video file",
        "nothing.mp4": "is empty",
        "noise.mp4": "cannot be read as a video",
        "header.mp4": "holds no video: it is empty or cut off",
        "cut.mp4": r"is cut off: it holds \d+ of the 40 frames",
        "": "is a folder",
    }
    for name, sentence in sentences.items():
        for read in (decode.probe, decode.read_frames):
            with pytest.raises(JvidpruneError, match=sentence) as caught:
                read(tmp_path / name)
            assert str(caught.value).count("\n") == 0
            assert str(caught.value).endswith(".")
    assert numbers_of(decode.read_frames(tmp_path / "cut.mp4", indices=[0, 3]).frames).tolist() == [0, 3]
    with pytest.raises(JvidpruneError, match="cut off"):
        decode.read_frames(tmp_path / "cut.mp4", indices=[0, 39])


def test_damage_inside_a_film_is_never_papered_over(film, tmp_path):
    data = bytearray(film.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[start : start + 400] = np.random.default_rng(1).bytes(400)
    path = tmp_path / "scratched.mp4"
    path.write_bytes(data)
    with pytest.raises(JvidpruneError, match="is damaged"):
        decode.read_frames(path, indices=range(40))
    assert numbers_of(decode.read_frames(path, indices=[1]).frames).tolist() == [1]


def test_titles_in_any_encoding_are_no_hindrance(film, tmp_path):
    path, content = tmp_path / "titled.mp4", film.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"L\xff\xfef"))
    assert numbers_of(decode.read_frames(path, indices=[0, 39]).frames).tolist() == [0, 39]


def test_files_without_pictures_end_in_a_sentence(tmp_path):
    def sound_file(name, cover=None):
        with av.open(str(tmp_path / name), "w") as out:
            sound = out.add_stream("aac", rate=8000)
            picture = out.add_stream("mjpeg") if cover is not None else None
            if picture is not None:
                picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
                picture.disposition = av.stream.Disposition.attached_pic
                out.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
                out.mux(picture.encode())
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            out.mux(sound.encode(silence))
            out.mux(sound.encode())
        return tmp_path / name

    for path in (sound_file("sound.mp4"), sound_file("song.mp4", cover=numbered(1)[0])):
        with pytest.raises(JvidpruneError, match="holds no video: there is only audio in it"):
            decode.read_frames(path)
    for name, sentence in (("hollow.mp4", "holds no video: it is empty"), ("hollow.avi", "a video without frames")):
        with av.open(str(tmp_path / name), "w") as out:
            stream = out.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            out.start_encoding()
        for read in (decode.probe, decode.read_frames):
            with pytest.raises(JvidpruneError, match=sentence):
                read(tmp_path / name)


def test_limits(film):
    with pytest.raises(JvidpruneError, match="64 x 48 pixels, more than the 3071 allowed"):
        decode.probe(film, limits=Limits(pixels=64 * 48 - 1))
    with pytest.raises(JvidpruneError, match=r"1000000000 frames .* more than the 4096"):
        decode.read_frames(film, num_frames=10**9)
    with pytest.raises(JvidpruneError, match="33 frames"):
        decode.read_frames(film, fps=8.25, limits=Limits(frames=32))
    with pytest.raises(JvidpruneError, match=r"more than the .* GiB allowed"):
        decode.read_frames(film, num_frames=8, limits=Limits(bytes=8 * 64 * 48 * 3 - 1))
    for read in (decode.probe, decode.read_frames):
        with pytest.raises(JvidpruneError, match=r"lasts 4 seconds, more than the 3\.5 allowed"):
            read(film, limits=Limits(seconds=3.5))
        with pytest.raises(JvidpruneError, match="holds more than the 39 frames allowed"):
            read(film, limits=Limits(total=39))
    assert decode.probe(film, limits=Limits.from_text("seconds=4, total=40,pixels=3072")).frames == 40
    for text, sentence in (
        ("size=3", "no limit 'size'"),
        ("frames=0", "above 0"),
        ("bytes=much", "above 0, not 'much'"),
    ):
        with pytest.raises(JvidpruneError, match=sentence):
            Limits.from_text(text)
    assert len(decode.read_frames(film, num_frames=8, limits=Limits(bytes=8 * 64 * 48 * 3)).frames) == 8


def test_the_decoder_is_silent_and_arrives_late(film, tmp_path):
    """Nothing but our sentence reaches stderr, and importing the package loads neither PyAV nor JAX."""
    data = bytearray(film.read_bytes())
    start = data.index(b"mdat") + 300
    data[start : start + 2000] = np.random.default_rng(2).bytes(2000)
    (tmp_path / "bad.mp4").write_bytes(data)
    code = (
        "import sys\n"
        "from jvidprune.procedural import clips\n"
        "from jvidprune.video import decode, preprocess\n"
        "assert not {'av', 'jax'} & set(sys.modules)\n"
        f"try: decode.read_frames({str(tmp_path / 'bad.mp4')!r})\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "is damaged" in done.stdout


def test_writing_refuses_what_is_no_film(tmp_path):
    with pytest.raises(JvidpruneError, match="rate above 0"):
        encode.write_mp4(tmp_path / "a.mp4", numbered(2), 0)
    with pytest.raises(JvidpruneError, match="no frames"):
        encode.write_mp4(tmp_path / "a.mp4", numbered(0), 8)
    assert list(tmp_path.iterdir()) == []
