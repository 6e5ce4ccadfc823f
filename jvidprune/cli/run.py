"""The verbs that run a model, with progress: ask, draw a reduction, make a clip."""

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from jvidprune.cli import costs
from jvidprune.cli.console import Console
from jvidprune.costs.fits import check_encoding, check_question
from jvidprune.errors import JvidpruneError, JvidpruneWarning
from jvidprune.fields import Range, Seed, checked
from jvidprune.files import atomic_output, check_writable
from jvidprune.llm.clock import with_times
from jvidprune.llm.stages import StageClock, cache_folder
from jvidprune.llm.video_llm import Answer, VideoLLM
from jvidprune.models.checkpoint.load import read_config
from jvidprune.models.embedded import EMBEDDED
from jvidprune.models.generate import check_sampling
from jvidprune.parallel import make_mesh, read_mesh
from jvidprune.reducers.protocol import Reducer, check_ratio
from jvidprune.reducers.registry import from_text, title
from jvidprune.reducers.run import reduce as reduce_video
from jvidprune.reducers.serialise import load_pruning
from jvidprune.tokens import VideoTokens
from jvidprune.video.clips import ClipSpec, default_clip, render, write_mp4
from jvidprune.video.container import existing_file
from jvidprune.video.decode import Clip
from jvidprune.video.limits import Limits
from jvidprune.video.sampling import check_wish
from jvidprune.viz.decision import Decision
from jvidprune.viz.drawn import drawn_frames
from jvidprune.viz.overlay import write_picture
from jvidprune.viz.report import reduction_page

REDUCER, RATIO = "flashvid", 0.1
"""What a question is asked with where neither the user nor the checkpoint says otherwise."""

_MOST_FRAMES = 10_000
"""Of a generated clip, which is made in memory: 3.3 GB."""

_FORMATS = (".html", ".png", ".mp4")


def open_model(choice: dict[str, Any], console: Console) -> VideoLLM:
    """The chosen checkpoint, or the embedded one, loaded with progress."""
    source = choice["model"]
    if source is None and choice.get("revision"):
        raise JvidpruneError(f"a revision, here {choice['revision']!r}, is one of a hub id: name it with --model.")
    if source is None:
        source = EMBEDDED
        console.note("embedded model: a tiny LLaVA-OneVision, trained on generated clips of moving shapes")
    bar = console.task("loading the model")
    # Every process reads its own clips on its own devices.
    mesh = make_mesh(**read_mesh(choice["mesh"]), devices=jax.local_devices()) if choice.get("mesh") else None
    return VideoLLM.load(
        source,
        dtype=choice["dtype"],
        mesh=mesh,
        progress=lambda done, total, _: bar(done, total),
        template=choice.get("template"),
        pooling_head=choice.get("pooling_head"),
        revision=choice.get("revision"),
        positions=choice.get("positions"),
        convention=choice.get("convention"),
        mrope_rule=choice.get("mrope_rule"),
    )


def check_reading(choice: dict[str, Any]) -> Limits:
    """What is accepted of a video, where frames and rate are such as a video can be sampled by.

    Raises:
      JvidpruneError: no frame, no rate above 0, or limits that are none.
    """
    frames, fps = choice["frames"], choice.get("fps")
    if frames is not None:
        check_wish(None, frames, None, None)
    if fps is not None:
        check_wish(None, None, fps, None)
    return Limits.from_text(choice.get("limits") or "")


def read_video(
    path: Path | None,
    model: VideoLLM,
    needs: frozenset[str],
    choice: dict[str, Any],
    clock: StageClock,
    console: Console,
    question: str | None = None,
) -> tuple[Clip, VideoTokens]:
    """Decodes and encodes a video (the generated clip without a path), timing both; methods may read the question."""
    if path is None:
        path = default_clip(cache_folder())
        console.note(f"no video given: using the generated clip {path}")
    with clock("decode", "frames") as stage:
        bar = console.task("decoding")
        limits = check_reading(choice)
        clip = model.sample(path, frames=choice["frames"], fps=choice["fps"], limits=limits, progress=bar)
        stage.tokens = len(clip.frames)
    if clip.picture:
        console.note(f"{path} is a picture: it is read as a video of one frame")
    with clock("encode") as stage:
        video = jax.block_until_ready(model.encode(clip.frames, needs, question if "text" in needs else None))
        stage.tokens = video.features.shape[0] * video.features.shape[1]
    return clip, video


def ask(
    path: Path | None,
    question: str,
    *,
    reducer: str | None,
    ratio: float | None,
    model: dict[str, Any],
    sampling: dict[str, Any],
    console: Console,
    times: bool = False,
) -> Answer:
    """One question from file to answer; bad names and numbers are refused before anything is loaded.

    Where no reducer or ratio is given they are the checkpoint's own, else FlashVID's at `RATIO`.
    """
    check_sampling(sampling["max_new_tokens"], sampling["temperature"], sampling["top_p"])
    checked(sampling["seed"], Seed, "seed")
    limits = check_reading(model)
    _check(path, [] if reducer is None else [reducer], RATIO if ratio is None else ratio)
    own = None
    if model["model"] is not None and None in (reducer, ratio):
        # This fetches the small files of a checkpoint of the hub.
        own = load_pruning(read_config(model["model"], model.get("revision"))[2])
    ratio = check_ratio((own.ratio if own else RATIO) if ratio is None else ratio)
    chosen = (own.reducer if own else REDUCER) if reducer is None else reducer
    with console.working():
        if model["model"] is not None:
            sizes: dict[str, Any] = {name: model[name] for name in ("frames", "fps", "dtype")}
            sizes |= {"mesh": model.get("mesh", ""), "limits": limits, "revision": model.get("revision")}
            sizes["convention"] = model.get("convention")
            options = sizes | {"reducer": chosen, "ratio": ratio, "max_new_tokens": sampling["max_new_tokens"]}
            check_question(model["model"], path or default_clip(cache_folder()), question, **options)
        llm = open_model(model, console)
        # The loaded settings are bound to the model, where a method needs its weights.
        method = llm.reducer(chosen) if isinstance(chosen, str) else llm.pruning.reducer if llm.pruning else chosen
        clock = StageClock(console.start)
        clip, video = read_video(path, llm, method.needs, model, clock, console, question)
        question = with_times(question, clip) if times else question
        answer = llm.ask(video, question, reducer=method, ratio=ratio, clock=clock, clip=clip, **sampling)
    return costs.priced(answer, llm.loaded.config, video.layout(), method)


def draw_reduction(
    path: Path | None, names: list[str], ratio: float, out: Path, *, model: dict[str, Any], console: Console
) -> dict[str, Any]:
    """Reduces a video with one or several methods and draws what they did."""
    if out.suffix.lower() not in _FORMATS:
        raise JvidpruneError(f"cannot draw to {out}: the suffix must be one of {', '.join(_FORMATS)}.")
    limits = check_reading(model)
    _check(path, names, ratio)
    check_writable(out)
    with console.working():
        if model["model"] is not None:
            sizes: dict[str, Any] = {name: model[name] for name in ("frames", "fps", "dtype")}
            sizes |= {"mesh": model.get("mesh", ""), "limits": limits, "revision": model.get("revision")}
            sizes["convention"] = model.get("convention")
            check_encoding(model["model"], path or default_clip(cache_folder()), **sizes)
        llm = open_model(model, console)
        methods = {name: llm.reducer(name) for name in names}
        needs = frozenset().union(*(method.needs for method in methods.values()))
        clock = StageClock(console.start)
        clip, video = read_video(path, llm, needs, model, clock, console)
        decisions, refused = [], {}
        for name, method in methods.items():
            try:
                with clock("reduce") as stage, warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", JvidpruneWarning)
                    decisions.append(decide(method, video, ratio, name))
                    stage.tokens = decisions[-1].count
                for one in said:
                    console.note(str(one.message))
            except JvidpruneError as error:
                # What one method cannot, the others still can.
                refused[name] = str(error)
                console.note(f"{name} is left out: {error}")
        if not decisions:
            raise JvidpruneError(next(iter(refused.values())))
        console.start("drawing")
        frames, labels = drawn_frames(clip, video.features.shape[0])
        with atomic_output(out) as part:
            if out.suffix.lower() == ".html":
                page = reduction_page(
                    frames,
                    decisions,
                    labels,
                    title=f"What {_listing([d.method for d in decisions])} {'keep' if len(decisions) > 1 else 'keeps'}",
                    subtitle=f"{path.name if path else 'generated clip'} · {len(frames)} frames of "
                    f"{video.grid[0]}×{video.grid[1]} tokens · {llm.loaded.family} · retention ratio {ratio:.0%}",
                )
                part.write_text(page, encoding="utf8")
            else:
                write_picture(part, frames, decisions, labels, _save_film)
    rows = [
        {
            "method": decision.method,
            "ratio": ratio,
            "tokens": decision.count,
            "achieved": decision.achieved,
            "per_frame": decision.per_frame().tolist(),
        }
        for decision in decisions
    ]
    stages = [dataclasses.asdict(stage) for stage in clock.stages]
    return {"out": str(out), "frames": len(frames), "methods": rows, "stages": stages, "refused": refused}


def _save_film(path: Path, film: np.ndarray) -> None:
    write_mp4(path, film, 4.0)


def decide(method: Reducer, video: VideoTokens, ratio: float, text: str) -> Decision:
    """One reduction on the host, with its diagnostics, of a method as it was typed."""
    reduced = jax.block_until_ready(reduce_video(method, video, ratio, diagnostics=True))
    shape: dict[str, Any] = {"frames": video.features.shape[0], "grid": video.grid}
    return Decision.from_reduced(reduced, method=title(text), ratio=ratio, **shape)


def make_clip(path: Path, *, seed: int, frames: int) -> dict[str, Any]:
    """Writes a generated clip."""
    if path.suffix.lower() != ".mp4":
        raise JvidpruneError(f"cannot write a clip to {path}: the suffix must be .mp4.")
    checked(seed, Annotated[int, Range(0)], "seed")
    checked(frames, Annotated[int, Range(3, _MOST_FRAMES)], "frames")
    check_writable(path)
    clip = render(ClipSpec(seed=seed, frames=frames))
    write_mp4(path, clip.frames, clip.spec.fps)
    return {"path": str(path), "frames": frames, "seed": seed}


def _check(path: Path | None, names: list[str], ratio: float) -> None:
    check_ratio(ratio)
    for name in names:
        from_text(name)
    if path is not None:
        existing_file(path)


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
