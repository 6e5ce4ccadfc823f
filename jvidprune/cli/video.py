"""`jvidprune video`: what is seen of a video file: which stream, which frames, at what times."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice, Video, print_json
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from rich.table import Table

    from jvidprune.models.settings import PictureShape
    from jvidprune.video.decode import Clip, VideoInfo


def video(
    path: Video = None,
    /,
    *,
    save: Annotated[Path | None, arg(help="Folder to write the sampled frames to, as PNG files.")] = None,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Say what is seen of a video file: its stream, frames, times and size, and the frames that `ask` would sample.

    With --frames or --fps the JSON object has their numbers and times by the rule of the checkpoint's family.
    """
    seen = look(path, model=model, save=save)
    if out.json:
        print_json(seen.record())
    elif out.quiet:
        print(seen.info.frames)
    else:
        out.console().print(look_table(seen))


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of a file.

    Attributes:
      path: of the file.
      info: what it holds.
      family: whose rule samples it.
      convention: that it is of, see `llm.conventions`.
      rule: name of this rule.
      clip: the frames that a question would be asked about, None for a still picture that the family cannot read.
      wished: whether frames or a rate were asked for.
      shape: grid frames and tokens that these frames become, with a clip.
    """

    path: Path
    info: "VideoInfo"
    family: str
    convention: str
    rule: str
    clip: "Clip | None"
    wished: bool
    shape: "PictureShape | None" = None

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: times are seconds by the file's own clock, sizes width and height as shown."""
        info = self.info
        return {
            "path": str(self.path),
            "frames": info.frames,
            "duration": round(info.duration, 6),
            "fps": round(info.fps, 6),
            "first": round(info.first, 6),
            "last": round(info.last, 6),
            "regular": info.regular,
            "size": [info.width, info.height],
            "stream": info.stream,
            "why": info.why,
            "rotation": info.rotation,
            "mirrored": info.mirrored,
            "format": info.format,
            "codec": info.codec,
            "picture": info.picture,
            "sampled": self.sampled() if self.wished else None,
        }

    def sampled(self) -> dict[str, Any] | None:
        """Numbers and times of the sampled frames, seconds from the first frame, and the tokens that these become."""
        if self.clip is None or self.shape is None:
            return None
        first = self.shape.layouts[0]
        seconds = self.clip.timestamps.tolist()
        return {
            "family": self.family,
            "convention": self.convention,
            "rule": self.rule,
            "numbers": self.clip.indices.tolist(),
            "times": [round(self.clip.start + time, 6) for time in seconds],
            "seconds": [round(time, 6) for time in seconds],
            "grid": [first.frames, *first.grid],
            "maps": [[one.frames, *one.grid] for one in self.shape.layouts],
            "tokens": self.shape.total,
        }


def look(path: Path | None, *, model: ModelChoice, save: Path | None = None) -> "Look":
    """Looks into a file, and reads the frames that `ask` would read.

    They are read without a wish as well: what a damaged file makes of a question is said here in the same words.

    Args:
      path: video file; by default the generated clip.
      model: frames and fps are the wish; of a checkpoint the configuration files alone are read, by default the
        embedded model's.
      save: folder that the sampled frames are written to as PNG files, named by their numbers.

    Raises:
      JvidpruneError: a file that cannot be read, a wish it cannot meet, or a folder that cannot be written to.
    """
    from jvidprune.cli.reading import check_reading
    from jvidprune.llm.folder import family_settings
    from jvidprune.llm.stages import cache_folder
    from jvidprune.models.checkpoint.load import read_config
    from jvidprune.models.checkpoint.processor import image_processor, video_processor
    from jvidprune.models.embedded import EMBEDDED
    from jvidprune.models.settings import PictureShape
    from jvidprune.procedural.clips import default_clip
    from jvidprune.video.container import existing_file
    from jvidprune.video.decode import probe, read_frames
    from jvidprune.video.sampling import RATE_RULES

    limits = check_reading(model)
    path = existing_file(path or default_clip(cache_folder()))
    family, config, folder = read_config(model.model or EMBEDDED, model.revision)
    settings = family_settings(family, folder, model.convention, model.mrope_rule)
    wish = settings.wish(model.frames, model.fps)
    rule = wish.rule if wish.fps is None else RATE_RULES.get(wish.rule, wish.rule)
    wished = save is not None or model.frames is not None or model.fps is not None
    info = probe(path, limits=limits)
    clip = read_frames(path, wish=wish, limits=limits) if wished or not info.picture or wish.pictures else None
    if save is not None and clip is not None:
        _save(clip, save)
    shape = None
    if clip is not None:
        height, width = clip.frames.shape[1:3]
        given = video_processor(folder)
        if clip.picture:
            shape = settings.shape_of_picture(config, (height, width), given, image_processor(folder))
        else:
            shape = PictureShape((settings.layout(config, len(clip.frames), (height, width), given),))
    return Look(path, info, family, settings.convention, rule, clip, wished, shape)


def look_table(seen: Look) -> "Table":
    """What is known of a file, a row a fact, and which frames were sampled."""
    from rich.table import Table
    from rich.text import Text

    info = seen.info
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    turned = [f"turned by {info.rotation}° clockwise"] * (info.rotation != 0)
    turned = ["mirrored"] * info.mirrored + turned
    plural = "" if info.frames == 1 else "s"
    rows = {
        "file": str(seen.path),
        "container": f"{info.format}, codec {info.codec}",
        "stream": f"{info.stream}, {info.why}",
        "size": f"{info.width} x {info.height} pixels" + (f", {' and '.join(turned)}" if turned else ", as stored"),
        "frames": f"{info.frames} frame{plural}, the file is whole",
        "duration": f"{info.duration:.3f} s, {info.fps:.6g} frames a second",
        "times": f"{info.first:.3f} to {info.last:.3f} s by the file's clock, "
        + ("at a constant rate" if info.regular else "at no constant rate: every frame has its own time"),
    }
    if info.picture:
        rows = {name: rows[name] for name in ("file", "container", "size")}
        rows["frames"] = "a still picture, no video"
        if seen.clip is None:
            rows["frames"] += f": {seen.family} cannot be asked about it"
    if seen.clip is not None:
        times = (seen.clip.start + seen.clip.timestamps).tolist()
        shown = [f"{number} ({time:.3f} s)" for number, time in zip(seen.clip.indices.tolist(), times, strict=True)]
        asked = "" if seen.wished else ", without a wish"
        rows["sampled"] = f"{len(shown)} of {info.frames} by {seen.family}'s rule {seen.rule}{asked}"
        rows[""] = "  ".join(shown)
    if seen.shape is not None:
        maps = " and ".join(f"{one.frames} x {one.grid[0]} x {one.grid[1]}" for one in seen.shape.layouts)
        rows["tokens"] = f"{seen.shape.total:,}, {maps}, in the convention {seen.convention}"
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table


def _save(clip: "Clip", folder: Path) -> None:
    from PIL import Image

    from jvidprune.files import atomic_output

    if folder.exists() and not folder.is_dir():
        raise JvidpruneError(f"cannot write frames to {folder}: it is no folder.")
    digits = len(str(clip.total - 1))
    for number, picture in dict(zip(clip.indices.tolist(), clip.frames, strict=True)).items():
        with atomic_output(folder / f"frame-{number:0{digits}d}.png") as part:
            Image.fromarray(picture).save(part)
