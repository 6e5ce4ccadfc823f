"""The command line: one verb a function, everything heavy imported inside the verb that needs it."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from jvidprune.cli.libraries import silent
from jvidprune.cli.options import (
    CHECKPOINT,
    MODEL,
    OUTPUT,
    PROCESSES,
    TRAINING,
    Checkpoint,
    Common,
    ConventionName,
    Model,
    MropeRuleName,
    Processes,
    Training,
    Video,
)
from jvidprune.errors import JvidpruneError
from jvidprune.extras import EXTRAS, need

app = tyro.extras.SubcommandApp()

QUESTION = "What is happening in this video?"


@app.command
def ask(
    video: Video = None,
    question: Annotated[str, Positional, arg(metavar="QUESTION")] = QUESTION,
    /,
    *,
    reducer: str | None = None,
    ratio: float | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    times: bool = False,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Answer a question about a video from a few of its tokens, and show what each stage cost.

    Args:
      question: what to ask.
      reducer: method (`jvidprune methods`), with settings as in "flashvid:alpha=0.5", or a chain as in
        "visionzip+flashvid"; "none" keeps all tokens, "stts" is the scorer that a checkpoint of `jvidprune train stts`
        holds; by default the checkpoint's own (`jvidprune export`), or flashvid.
      ratio: retention ratio in (0, 1]; by default the checkpoint's own, or 0.1.
      max_new_tokens: longest answer.
      temperature: 0 answers greedily, above 0 samples.
      top_p: share of probability that sampling draws from.
      seed: seed of sampling.
      times: put the times of the frames before the question, as LLaVA-Video's training did.
    """
    from jvidprune.cli import run

    console = out.console()
    answer = run.ask(
        video,
        question,
        reducer=reducer,
        ratio=ratio,
        model=dataclasses.asdict(model),
        sampling={"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed},
        console=console,
        times=times,
    )
    if out.json:
        _print_json(answer.record())
    elif out.quiet:
        print(answer.text)
    else:
        console.answer(answer)


@app.command
def reduce(
    video: Video = None,
    /,
    *,
    reducer: str = "flashvid",
    compare: str = "",
    ratio: float = 0.1,
    save: Annotated[Path, arg(name="out", help="Where to draw it: .html, .png or .mp4.")] = Path("reduction.html"),
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Show which tokens of a video are kept and which are merged into which, drawn on its frames.

    Args:
      reducer: method (`jvidprune methods`), with settings as in "stop:base=fastvid", or a chain as in
        "visionzip+flashvid".
      compare: several methods separated by commas, drawn side by side; replaces `reducer`.
      ratio: retention ratio in (0, 1].
    """
    from jvidprune.cli import run
    from jvidprune.texts import split_texts

    console = out.console()
    names = split_texts(compare) if compare else [reducer]
    if not names:
        raise JvidpruneError(f"compare takes methods separated by commas, got {compare!r}.")
    record = run.draw_reduction(video, names, ratio, save, model=dataclasses.asdict(model), console=console)
    if out.json:
        _print_json(record)
    elif out.quiet:
        print(save)
    else:
        console.reduction(record)


@app.command(name="sweep")
def sweep_methods(
    *,
    methods: str = "",
    ratios: str = "0.25,0.2,0.15,0.1,0.05",
    task: str = "procedural",
    data: Path | None = None,
    clips: int | None = None,
    questions: Literal["answerable", "all"] = "answerable",
    max_new_tokens: int = 8,
    strict: bool = False,
    save: Annotated[
        Path | None, arg(name="out", help="Folder of the run; by default runs/<hash of what changes results>.")
    ] = None,
    model: Model = MODEL,
    launch: Processes = PROCESSES,
    out: Common = OUTPUT,
) -> None:
    """Compare methods by accuracy at retention ratios: a table, a CSV file, plots and report.html; resumes if stopped.

    Videos and annotations that cannot be used are left out and listed. With --out a folder gathers what is asked of it:
    further clips, methods and ratios, or a mended video, are added to what is there.

    Args:
      methods: names with settings, separated by commas; by default all that read the video before the language model.
      ratios: retention ratios in (0, 1], separated by commas.
      task: "procedural", or a published benchmark: videomme, mvbench, egoschema, longvideobench, mlvu, nextqa,
        eventhallusion; "exported" reads what `jvidprune bench export` wrote.
      data: folder with a published benchmark's annotations and videos.
      clips: look at the first so many clips only.
      questions: of the procedural benchmark: those that the embedded model was measured to answer above chance, or all.
      max_new_tokens: longest answer.
      strict: stop at the first video or annotation that cannot be used, instead of leaving it out and listing it.
    """
    from jvidprune.cli import sweep
    from jvidprune.texts import split_texts

    console = out.console()
    chosen = split_texts(methods or sweep.METHODS)
    asked = task, data, clips, questions, max_new_tokens, save, strict
    choice = sweep.SweepChoice(chosen, sweep.read_ratios(ratios), *asked)
    settings = {"model": dataclasses.asdict(model), "launch": dataclasses.asdict(launch)}
    table, record = sweep.sweep(choice, **settings, console=console)
    if out.json:
        _print_json(record)
    elif table is None:
        console.unfinished(record)
    elif out.quiet:
        print(record["report"])
    else:
        console.sweep(table, record)


@app.command(name="serve")
def serve_page(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_mb: float = 64.0,
    max_new_tokens: int = 64,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Serve a local page to look and try: one video and one question, several methods side by side.

    Args:
      host: address to bind; there is no log-in, so anything but loopback lets everyone in who reaches it.
      port: port of the page, 0 for any free one.
      max_mb: largest upload in megabytes.
      max_new_tokens: longest answer.
    """
    need("the page", "gradio")
    from jvidprune.cli import serve

    limits = {"upload_mb": max_mb, "max_new_tokens": max_new_tokens}
    serve.serve(host, port, model=dataclasses.asdict(model), console=out.console(), as_json=out.json, **limits)


@app.command
def clip(
    path: Annotated[Path, Positional] = Path("clip.mp4"), /, *, seed: int = 0, frames: int = 64, out: Common = OUTPUT
) -> None:
    """Write a generated clip of moving shapes, cuts and camera motion as a real mp4 file.

    Args:
      path: file to write.
      seed: equal seeds give equal clips.
      frames: length in frames.
    """
    from jvidprune.cli import run

    record = run.make_clip(path, seed=seed, frames=frames)
    if out.json:
        _print_json(record)
    else:
        print(path)


@app.command(name="video")
def look_into_video(
    video: Video = None,
    /,
    *,
    save: Annotated[Path | None, arg(help="Folder to write the sampled frames to, as PNG files.")] = None,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Say what is seen of a video file: its stream, frames, times and size, and the frames that `ask` would sample.

    With --frames or --fps the JSON object has their numbers and times by the rule of the checkpoint's family.
    """
    from jvidprune.cli import video as verb

    console = out.console()
    seen = verb.look(video, model=dataclasses.asdict(model), save=save)
    if out.json:
        _print_json(seen.record())
    elif out.quiet:
        print(seen.info.frames)
    else:
        console.show(verb.look_table(seen))


@app.command
def methods(*, out: Common = OUTPUT) -> None:
    """List the reducers: paper, the evidence they need, whether they merge and nest."""
    from jvidprune import reducers
    from jvidprune.reducers.registry import combinators

    rows = []
    for name in (*reducers.names(), *combinators()):
        info, reducer = reducers.info(name), reducers.get(name)
        row = dataclasses.asdict(info) | {"needs": sorted(reducer.needs)}
        rows.append(row)
    if out.json:
        _print_json(rows)
    elif out.quiet:
        print("\n".join(row["name"] for row in rows))
    else:
        out.console().methods(rows)


@app.command
def models(*, out: Common = OUTPUT) -> None:
    """List the model families that checkpoints can be loaded for."""
    from jvidprune.models.listing import families

    rows = families()
    if out.json:
        _print_json(rows)
    elif out.quiet:
        print("\n".join(row["family"] for row in rows))
    else:
        out.console().models(rows)


@app.command
def bench(
    action: Annotated[Literal["export", "baselines"], Positional],
    folder: Annotated[Path, Positional] = Path("benchmark"),
    /,
    *,
    split: Literal["train", "validation", "test"] = "test",
    clips: int = 200,
    frames: int = 8,
    difficulty: float = 0.5,
    out: Common = OUTPUT,
) -> None:
    """The procedural benchmark as mp4 files with annotations, or what its questions give away without their clips.

    Args:
      action: "export" writes files; "baselines" measures chance and text-only guessing on the split.
      folder: where to export to.
      split: seeds of different splits never overlap.
      clips: number of clips.
      frames: frames of a clip, one a second.
      difficulty: 0 to 1.
    """
    from jvidprune.cli import benchmark

    settings: Any = {"frames": frames, "difficulty": difficulty}
    if action == "baselines":
        record, text = benchmark.baselines(split, clips, settings)
    else:
        record = benchmark.export(folder, split, clips, settings, console=out.console())
        text = record["path"]
    if out.json:
        _print_json(record)
    else:
        print(text)


@app.command
def export(
    model: Annotated[str, Positional],
    folder: Annotated[Path, Positional],
    /,
    *,
    reducer: str | None = None,
    ratio: float | None = None,
    positions: Literal["renumbered", "original"] | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] | None = None,
    pooling_head: str | None = None,
    revision: str | None = None,
    convention: ConventionName | None = None,
    mrope_rule: MropeRuleName | None = None,
    out: Common = OUTPUT,
) -> None:
    """Write a checkpoint with pruning settings beside it, in the layout and with the tensor names other tools read.

    Args:
      model: checkpoint folder or hub id.
      folder: to create.
      reducer: method with settings that goes into jvidprune_config.json; by default the file is copied if there is one.
      ratio: retention ratio in (0, 1] that goes with it; by default 0.1.
      positions: of kept tokens; goes with the reducer, or without one holds for every method on the checkpoint.
      dtype: store parameters so; by default as each is stored.
      pooling_head: folder or hub id of the original SigLIP, whose pooling head is to be part of a LLaVA checkpoint.
      revision: branch, tag or commit of a hub id.
      convention: that videos are read in, which goes into jvidprune_config.json with the reducer.
      mrope_rule: of the Qwen-VL families, likewise.
    """
    from jvidprune.cli.export import export as write

    options: Any = {"reducer": reducer, "ratio": ratio, "dtype": dtype, "pooling_head": pooling_head}
    options |= {"revision": revision, "positions": positions}
    options |= {"convention": convention, "mrope_rule": mrope_rule}
    record = write(model, folder, console=out.console(), **options)
    if out.json:
        _print_json(record)
    else:
        print(record["path"])


@app.command
def flops(
    *,
    model: str = "llava-onevision-7b",
    reducer: str = "flashvid",
    ratio: float = 0.1,
    frames: int | None = None,
    size: str = "448x448",
    kept: int | None = None,
    text: int = 57,
    new_tokens: int = 64,
    convention: ConventionName | None = None,
    out: Common = OUTPUT,
) -> None:
    """Count what an answer costs, stage by stage, from a model's config alone.

    Args:
      model: a published model such as qwen2.5-vl-7b, or a folder with config.json.
      reducer: method (`jvidprune methods`), with settings as in "flashvid:alpha=0.5"; "none" keeps all tokens.
      ratio: retention ratio in (0, 1].
      frames: frames of the video; by default what the family was evaluated with.
      size: frames in pixels, HEIGHTxWIDTH; only the Qwen families read more than one size.
      kept: visual tokens kept, where they are known; by default the count or bound of the method.
      text: text tokens of the prompt.
      new_tokens: length of the answer.
      convention: that the video is read in (docs/conventions.md); by default the authors' released code's.
    """
    from jvidprune.cli import costs

    numbers = {"frames": frames, "size": size, "kept": kept, "text": text, "new_tokens": new_tokens}
    report = costs.of_config(model, reducer=reducer, ratio=ratio, convention=convention, **numbers)
    if out.json:
        _print_json(report.record())
    elif out.quiet:
        print(f"{report.total:.0f}")
    else:
        out.console().flops(report)


@app.command
def plan(
    *,
    model: str = "qwen2.5-vl-7b",
    chip: str = "h100",
    mesh: tuple[str, ...] = ("tensor=1",),
    frames: str = "",
    ratios: str = "1,0.25,0.1",
    reducer: str = "flashvid",
    size: str = "448x448",
    text: int = 57,
    new_tokens: int = 64,
    batch: int = 1,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    convention: ConventionName | None = None,
    out: Common = OUTPUT,
) -> None:
    """Say whether a model, a video and a ratio fit a mesh of named chips, what bounds them, and when the answer begins.

    Args:
      model: a published model such as qwen2.5-vl-7b, or a folder with config.json.
      chip: h100, h200, a100-40g, a100-80g, v4, v5e, v5p or v6e; several separated by commas.
      mesh: one or several, as in "tensor=2" or "data=2,fsdp=4,tensor=2".
      frames: of the video, several separated by commas; by default what the family was evaluated with.
      ratios: retention ratios in (0, 1], separated by commas.
      reducer: method (`jvidprune methods`), with settings as in "flashvid:alpha=0.5".
      size: frames in pixels, HEIGHTxWIDTH; only the Qwen families read more than one size.
      text: text tokens of the prompt.
      new_tokens: longest answer.
      batch: prompts read together, each with a video of its own.
      dtype: of parameters and activations.
      convention: that the video is read in (docs/conventions.md); by default the authors' released code's.
    """
    from jvidprune.cli import planning

    sizes: Any = {"text": text, "new_tokens": new_tokens, "batch": batch, "dtype": dtype, "convention": convention}
    wish = planning.Wish(model, chip, mesh, frames, ratios, reducer, size, **sizes)
    rows = planning.rows(wish)
    if out.json:
        _print_json([row.record() for row in rows])
    elif out.quiet:
        print("\n".join("fits" if row.memory.fits else "does not fit" for row in rows))
    else:
        out.console().plan(rows)


@app.command
def train(
    what: Annotated[Literal["stts"], Positional],
    /,
    *,
    folder: Path = Path("runs/stts"),
    settings: Training = TRAINING,
    model: Checkpoint = CHECKPOINT,
    out: Common = OUTPUT,
) -> None:
    """Train a scorer that prunes tokens inside the vision tower (STTS), and the model with it; goes on if stopped.

    Args:
      what: "stts".
      folder: of checkpoints, curves and, below it in model/, the trained checkpoint. The same command goes on where it
        stopped.
    """
    need("training", "grain", "optax", "orbax.checkpoint", *["tensorboardX"] * settings.tensorboard)
    from jvidprune.cli import train as verb

    console = out.console()
    record = verb.train_stts(settings, folder, model=dataclasses.asdict(model), console=console)
    if out.json:
        _print_json(record)
    elif out.quiet:
        print(record["model"])
    else:
        console.training(record)


@app.command
def parity(folder: Annotated[Path, Positional], /, *, model: bool = False, out: Common = OUTPUT) -> None:
    """Run a folder of golden .npz files through the port and compare.

    Args:
      folder: golden files; with `--model` a tiny checkpoint folder with io*.npz.
      model: the folder is a checkpoint.
    """
    from jvidprune.cli.console import parity_tables
    from jvidprune.parity import run as parity_run

    reports = parity_run.reports(folder, model=model)
    passed = parity_tables(reports, as_json=out.json, quiet=out.quiet)
    if not passed:
        sys.exit(1)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def main() -> None:
    """Entry point: exit code 0 on success, 1 on a parity mismatch, 2 on an error the user can fix.

    75 is EX_TEMPFAIL, for an `errors.TransientError`, where the same command may succeed later; 130 follows Ctrl-C, 141
    output that nobody reads any more.
    """
    debug = "--debug" in sys.argv
    quiet = bool({"--quiet", "--json"} & set(sys.argv))
    try:
        with contextlib.nullcontext() if debug else silent(quiet=quiet):
            app.cli(prog="jvidprune", description="Visual-token reduction for video LLMs in JAX.")
    except JvidpruneError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ImportError as error:
        top = (error.name or "").partition(".")[0]
        if debug or top in ("", "jvidprune"):
            raise
        package = f"jvidprune[{EXTRAS[top]}]" if top in EXTRAS else "jvidprune"
        print(f"error: this verb needs {top}, which cannot be imported: pip install '{package}'.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
