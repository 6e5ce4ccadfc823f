"""A published table beside our own numbers: what the paper reports, what this package measures, and what is missing.

    python experiments/reproduce/run.py --list
    python experiments/reproduce/run.py aot --models FOLDER --data FOLDER
    python experiments/reproduce/run.py all --models FOLDER --data FOLDER    # every table whose weights are there

--models holds checkpoint folders under their hub names (OWNER/NAME or NAME), --data a folder for each benchmark
(videomme, mvbench, ...) in its published layout. What is there is run through the sweep, which resumes if stopped; what
is not is listed. Tables of one model share its answers. Open answers count once `jvidprune judge` has scored them in
the folder that is named; run the table again then. Other weights stand in with --model, and the tables are then no
comparison with the paper.
"""

import argparse
import dataclasses
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError

HERE = Path(__file__).parent
FULL = "none"
ALL_TABLES = "all"
DERIVED = ("average", "relative", "drop", "fine_drop", "grounding")
"""Columns that are made from others: the mean of the tasks, that over the unpruned one's, the mean relative loss of the
multiple-choice and of the fine-grained ones, and the mean overlap of spans over the unpruned one's."""


@dataclasses.dataclass(frozen=True)
class Table:
    """One config file.

    Attributes:
      name: of the file.
      title, paper, table: what it is, the arXiv id, and where in the paper.
      checkpoint, family: hub id of the weights, and the family they load as.
      frames: of a video.
      ratios: retention ratios of all methods that have none of their own.
      tasks: names of benchmarks (`evals.datasets`).
      columns: task, task.category, or one of `DERIVED`.
      methods: the table's name of a method -> ratio -> how the command line writes it there. A file gives one text
        for all ratios, {default = TEXT, "0.1" = TEXT} where settings depend on the ratio, or {"0.11" = TEXT} without a
        default for a method that runs at ratios of its own.
      reported: (method, ratio) -> the paper's values in per cent by column, without those that are not at hand.
      pooling_head: hub id of the SigLIP that some methods need.
      notes, missing: remarks, and what of the table is not at hand.
      prompts: wording of the questions (`evals.datasets.open_dataset`) where a benchmark has it.
      groups: derived column -> the columns that it is made from, where these are not all tasks.
      frames_of: method -> frames of a video, for methods that are given others than the unpruned model.
    """

    name: str
    title: str
    paper: str
    table: str
    checkpoint: str
    family: str
    frames: int
    ratios: tuple[float, ...]
    tasks: tuple[str, ...]
    columns: tuple[str, ...]
    methods: Mapping[str, Mapping[float, str]]
    reported: Mapping[tuple[str, float], Mapping[str, float]]
    pooling_head: str | None
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    prompts: str | None = None
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    frames_of: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def wording(self, task: str) -> Any:
        """The wording that the table asks for, where a benchmark can be asked in it; None for the benchmark's default.

        Raises:
          JvidpruneError: an unknown benchmark.
        """
        from jvidprune.evals.datasets import prompt_presets

        return self.prompts if self.prompts in prompt_presets(task) else None


@dataclasses.dataclass(frozen=True)
class Found:
    """What of a table can be run.

    Attributes:
      model: checkpoint folder.
      pooling_head: folder of SigLIP.
      tasks: name -> folder of the benchmark.
      methods: those of the table that the model can run, as `Table.methods`.
      absent: what is not there, a line each.
    """

    model: Path | None
    pooling_head: Path | None
    tasks: dict[str, Path]
    methods: dict[str, Mapping[float, str]]
    absent: list[str]


def names() -> list[str]:
    """All tables."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def read(name: str) -> Table:
    """A table by the name of its file.

    Raises:
      JvidpruneError: there is none.
    """
    if name not in names():
        raise JvidpruneError(f"there is no table {name!r}; there are {', '.join(names())}.")
    raw = tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf8"))
    columns = tuple(raw.pop("columns"))
    reported = {
        (method, float(ratio)): {c: v for c, v in zip(columns, values, strict=True) if not math.isnan(v)}
        for method, rows in raw.pop("reported").items()
        for ratio, values in rows.items()
    }
    lists = {key: tuple(raw.pop(key)) for key in ("ratios", "tasks", "notes", "missing")}
    methods = {method: by_ratio(text, lists["ratios"]) for method, text in raw.pop("methods").items()}
    head = raw.pop("pooling_head", None)
    raw["groups"] = {column: tuple(some) for column, some in raw.pop("groups", {}).items()}
    return Table(name=name, columns=columns, methods=methods, reported=reported, pooling_head=head, **lists, **raw)


def by_ratio(text: str | Mapping[str, str], ratios: tuple[float, ...]) -> dict[float, str]:
    """How a method is written at each ratio that it runs at, from one text or a table; see `Table.methods`."""
    if isinstance(text, str):
        return dict.fromkeys(ratios, text)
    given = {float(ratio): words for ratio, words in text.items() if ratio != "default"}
    return (dict.fromkeys(ratios, text["default"]) if "default" in text else {}) | given


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method under one text, and the ratios at which the table runs it so."""

    method: str
    text: str
    ratios: tuple[float, ...]


def settings(methods: Mapping[str, Mapping[float, str]]) -> dict[str, Setting]:
    """Name in the sweep -> setting; a method's first has its name, others have their text behind it."""
    found: dict[str, Setting] = {}
    for method, texts in methods.items():
        for text in dict.fromkeys(texts.values()):
            name = method if method not in found else f"{method}, {text}"
            found[name] = Setting(method, text, tuple(ratio for ratio, words in texts.items() if words == text))
    return found


def look(table: Table, args: argparse.Namespace) -> Found:
    """Looks for weights and data."""
    from jvidprune.models.family import names
    from jvidprune.reducers.registry import from_text

    absent: list[str] = []
    model = args.model or _below(args.models, table.checkpoint)
    if model is None:
        absent.append(f"the weights {table.checkpoint} below --models ({args.models or 'not given'})")
        if table.family not in names():
            absent.append(f"the family {table.family}, which cannot be loaded yet")
    head = args.pooling_head or _below(args.models, table.pooling_head)
    tasks = {}
    for task in table.tasks if args.tasks is None else args.tasks.split(","):
        if task not in table.tasks and (len(args.tables) > 1 or ALL_TABLES in args.tables):
            continue
        if task not in table.tasks:
            raise JvidpruneError(f"{table.name} has no task {task!r}; its tasks are {', '.join(table.tasks)}.")
        folder = _below(args.data, task)
        if folder is None:
            absent.append(f"the benchmark {task} below --data ({args.data or 'not given'})")
        else:
            tasks[task] = folder
    methods = {}
    family, gives = (None, None) if model is None else _gives(model, head)
    for name, texts in table.methods.items():
        needs = frozenset().union(*(from_text(text, family).needs for text in set(texts.values())))
        lacking = set() if gives is None else needs - gives - {"text"}
        if lacking:
            what = f"the evidence {', '.join(sorted(lacking))}, which {name} reads"
            hint = f" (it takes the pooling head of {table.pooling_head} below --models)" if table.pooling_head else ""
            absent.append(what + hint)
        else:
            methods[name] = texts
    return Found(model, head, tasks, methods, absent)


def _gives(model: Path, head: Path | None) -> tuple[str, frozenset[str]]:
    """Family and evidence of a checkpoint, with SigLIP's pooling head or without."""
    from jvidprune.models.checkpoint.folder import Checkpoint
    from jvidprune.models.checkpoint.load import name_table, read_config
    from jvidprune.models.llava_onevision.config import HEAD_EVIDENCE
    from jvidprune.stts.attach import EVIDENCE
    from jvidprune.stts.saved import read_stts, released_scorer

    family, config, folder = read_config(model)
    names = Checkpoint(folder, name_table(family, config).canonical).names
    gives = config.with_tensors(names).provides
    if read_stts(folder, heads=config.vision.heads) or released_scorer(folder, config.vision.heads):
        gives |= EVIDENCE
    return family, gives if head is None else gives | HEAD_EVIDENCE


def _below(folder: Path | None, name: str | None) -> Path | None:
    """A folder called so, or as its last part, in any spelling of upper case and dashes."""
    if folder is None or name is None or not folder.is_dir():
        return None
    if (folder / name).is_dir():
        return folder / name
    wanted = _plain(name.rsplit("/", 1)[-1])
    return next((path for path in sorted(folder.iterdir()) if path.is_dir() and _plain(path.name) == wanted), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def run(
    table: Table, found: Found, args: argparse.Namespace
) -> tuple[dict[tuple[str, float], dict[str, float]], list[str]]:
    """Our numbers in per cent by column, and "kept", the tokens really kept; and what was left out, a line each.

    There are no numbers of open answers that no judge has read.

    Resumes what is in --out. A task of which nothing can be asked costs the others nothing.

    Raises:
      JvidpruneError: nothing of any task can be asked, or with --strict something of one cannot.
    """
    from jvidprune.cli.console import Console
    from jvidprune.cli.options import ModelChoice
    from jvidprune.cli.reading import open_model

    console = Console()
    ours: dict[tuple[str, float], dict[str, float]] = {}
    bad: list[str] = []
    ran = False
    by_frames: dict[int, dict[str, Mapping[float, str]]] = {args.frames or table.frames: {}}
    for name, texts in found.methods.items():
        by_frames.setdefault(args.frames or table.frames_of.get(name, table.frames), {})[name] = texts
    with console.working():
        head = None if found.pooling_head is None else str(found.pooling_head)
        llm = open_model(ModelChoice(str(found.model), args.frames or table.frames, head, dtype=args.dtype), console)
        for name, folder in found.tasks.items():
            for frames, methods in by_frames.items():
                base = frames == (args.frames or table.frames)
                try:
                    rows = _run_task(table, name, folder, llm, frames, methods, args, console, bad)
                except JvidpruneError as error:
                    if args.strict:
                        raise
                    bad.append(str(error))
                    continue
                ran = True
                for key, row in rows.items():
                    if base or key[0] != FULL:
                        ours.setdefault(key, {}).update(row)
    if not ran:
        raise JvidpruneError(bad[-1])
    whole = ours.get((FULL, 1.0), {})
    return {key: row | derived(row, whole, table.tasks, table.groups) for key, row in ours.items()}, bad


def _run_task(
    table: Table,
    name: str,
    folder: Path,
    llm: Any,
    frames: int,
    methods: Mapping[str, Mapping[float, str]],
    args: argparse.Namespace,
    console: Any,
    bad: list[str],
) -> dict[tuple[str, float], dict[str, float]]:
    """The columns of one task, by method and ratio; what was left out of it is added to `bad`.

    Raises:
      JvidpruneError: nothing of it can be asked, or with --strict something cannot.
    """
    from jvidprune.cli.left_out import note_left_out, nothing_answered
    from jvidprune.evals.datasets import answer_tokens
    from jvidprune.evals.items import left_out
    from jvidprune.evals.judge.scores import MEAN
    from jvidprune.evals.metrics import ALL
    from jvidprune.evals.plan import BLIND, SweepPlan
    from jvidprune.evals.results import make_table
    from jvidprune.evals.runner import run_sweep
    from jvidprune.evals.tasks import open_task

    asked, prompts = settings(methods), args.prompts or table.prompts
    wording = dataclasses.replace(table, prompts=prompts).wording(name)
    place = args.out / "answers" / f"{llm.loaded.folder.name}-{frames}" / (f"{name}-{wording}" if wording else name)
    given = {"clips": args.clips, "questions": "all", "frames": frames, "strict": args.strict, "prompts": wording}
    task = open_task(name, folder, llm, **given)
    note_left_out(left_out(task), console)
    own = {key: one.ratios for key, one in asked.items()}
    ratios = tuple(dict.fromkeys([*table.ratios, *(ratio for some in own.values() for ratio in some)]))
    plan = SweepPlan({key: llm.reducer(one.text) for key, one in asked.items()}, ratios, answer_tokens(name), own)
    bar = console.task(name, len(task))
    records = run_sweep(llm, task, plan, place, strict=args.strict, progress=lambda _, done, total: bar(done, total))
    bad += [f"{name}: {one}" for one in records.left_out]
    if not records.samples:
        raise JvidpruneError(nothing_answered(name, records.left_out))
    swept = make_table(records, task, {})
    if swept.unjudged:
        bad.append(f"{name}: {swept.unjudged:,} open answers await a judge: jvidprune judge {place} --endpoint URL ...")
    whole, rows = swept.cell(FULL, 1.0), {}
    for key, ratio in swept.runs:
        row = rows.setdefault((asked[key].method if key in asked else key, ratio), {})
        for category in (ALL, *swept.categories):
            if (cell := swept.cell(key, ratio, category)) is not None:
                row[name if category == ALL else f"{name}.{category}"] = 100 * cell.accuracy
        cell = swept.cell(key, ratio)
        if cell is not None and whole is not None:
            row["kept"] = 100 * cell.kept / whole.kept
    for one in swept.grounding:
        key = asked[one.method].method if one.method in asked else one.method
        rows.setdefault((key, one.ratio), {})[f"{name}.miou"] = 100 * one.miou
    for one in swept.opened.rows:
        # The first judge's, where several have read the answers.
        if one.judge == swept.opened.rows[0].judge and one.aspect == _aspect(swept.opened.rows, MEAN):
            key = asked[one.method].method if one.method in asked else one.method
            rows.setdefault((key, one.ratio), {})[name] = 100 * one.score / one.top
    return {key: row for key, row in rows.items() if key[0] != BLIND}


def _aspect(rows: Sequence[Any], mean: str) -> str:
    """What a judge's score stands for in a table: the mean over aspects, or the only one."""
    return mean if any(row.aspect == mean for row in rows) else rows[0].aspect


def derived(
    row: Mapping[str, float],
    whole: Mapping[str, float],
    tasks: tuple[str, ...],
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, float]:
    """The columns `DERIVED` of a row, each where all that it is made from is there.

    Without a group of its own "drop" leaves the hallucination task out; "fine_drop" and "grounding" need one.
    """
    groups = groups or {}
    choices = tuple(task for task in tasks if task != "eventhallusion")
    spans = tuple(f"{task}.miou" for task in groups.get("grounding", ()))
    found: dict[str, float] = {}
    for column in ("average", "relative"):
        names = groups.get(column, tasks)
        full = _mean([whole.get(name) for name in names])
        if (mean := _mean([row.get(name) for name in names])) is not None and full is not None:
            found |= {"average": mean} if column == "average" else {"relative": 100 * mean / full} if full else {}
    for column, names in (("drop", groups.get("drop", choices)), ("fine_drop", groups.get("fine_drop", ()))):
        lost = [1 - row[name] / whole[name] for name in names if name in row and whole.get(name)]
        if lost and all(name in row and name in whole for name in names):
            found[column] = 100 * math.fsum(lost) / len(lost)
    mean, full = (_mean([one.get(name) for name in spans]) for one in (row, whole))
    return found | ({"grounding": 100 * mean / full} if mean is not None and full else {})


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is not there, or there are none."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there and len(there) == len(values) else None


def show(table: Table, ours: Mapping[tuple[str, float], Mapping[str, float]]) -> str:
    """The table as Markdown: in every cell ours, then the paper's; a dash where one is missing."""
    from jvidprune.evals.markdown import grid

    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    keys = list(dict.fromkeys([*table.reported, *(key for key in ours if key[0] in (FULL, *table.methods))]))
    # Methods in the order of the paper's table, each from the largest ratio down.
    order = list(dict.fromkeys(method for method, _ in keys))
    keys.sort(key=lambda key: (order.index(key[0]), -key[1]))
    rows = []
    for method, ratio in keys:
        mine, theirs = ours.get((method, ratio), {}), table.reported.get((method, ratio), {})
        cells = [f"{text(mine.get(column))} / {text(theirs.get(column))}" for column in table.columns]
        name = "unpruned" if method == FULL else f"{method} at {100 * ratio:g} %"
        rows.append([name, text(mine.get("kept")), *cells])
    return grid(["ours / paper, per cent", "kept", *table.columns], rows)


def report(table: Table, found: Found, ours: Mapping[Any, Any], bad: Sequence[str] = ()) -> str:
    """Everything as Markdown."""
    parts = [f"# {table.title}", f"arXiv {table.paper}, {table.table}; {table.checkpoint}, {table.frames} frames."]
    if table.prompts:
        parts[-1] += f" Prompts where a benchmark has them: {table.prompts}."
    if ours:
        parts[-1] += f" Ours: {found.model}."
    parts.append(show(table, ours))
    parts += [f"- {note}" for note in table.notes]
    parts += [f"- Not at hand of the paper: {text}" for text in table.missing]
    parts += [f"- Not run here for want of {text}." for text in found.absent]
    parts += [f"- Left out: {text}" for text in bad]
    return "\n\n".join(parts[:3]) + "\n\n" + "\n".join(parts[3:]) + "\n"


def main(words: list[str] | None = None) -> int:
    """Runs what is there of the tables and prints it; 2 where nothing can be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"{ALL_TABLES}, or some of {', '.join(names())}")
    parser.add_argument("--list", action="store_true", help="list the tables")
    parser.add_argument("--models", type=Path, help="folder of checkpoint folders")
    parser.add_argument("--data", type=Path, help="folder of benchmark folders")
    parser.add_argument("--model", type=Path, help="another checkpoint folder in place of the table's")
    parser.add_argument("--pooling-head", type=Path, help="folder of the original SigLIP")
    parser.add_argument("--tasks", help="some of the table's tasks, separated by commas")
    parser.add_argument("--prompts", choices=("lmms_eval", "stop", "official"), help="wording in place of the table's")
    parser.add_argument("--clips", type=int, help="the first so many clips of each task")
    parser.add_argument("--frames", type=int, help="frames of a video in place of the table's")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--strict", action="store_true", help="stop at the first video or annotation that is bad")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    args = parser.parse_args(words)
    if args.list or not args.tables:
        for name in names():
            table = read(name)
            print(f"{name:32} {table.title} (arXiv {table.paper}, {table.table})")
        return 0
    wanted = names() if ALL_TABLES in args.tables else list(dict.fromkeys(args.tables))
    done: list[str] = []
    lacking: dict[str, list[str]] = {}
    code = 0
    for name in wanted:
        try:
            lacking[name] = run_table(read(name), args, alone=len(wanted) == 1)
            done += [] if lacking[name] else [name]
        except JvidpruneError as error:
            print(f"error: {name}: {error}" if len(wanted) > 1 else f"error: {error}", file=sys.stderr)
            lacking[name], code = [str(error)], error.exit_code
            if args.strict:
                break
    if len(wanted) > 1:
        print(f"{len(done)} of {len(wanted)} tables were run: {', '.join(done) or 'none'}; each is in {args.out}.")
        by_want: dict[str, list[str]] = {}
        for name, texts in lacking.items():
            for text in texts:
                by_want.setdefault(text, []).append(name)
        for text, some in by_want.items():
            print(f"- {', '.join(some)}: not run for want of {text}")
    return 0 if done and not (args.strict and code) else code or 2


def run_table(table: Table, args: argparse.Namespace, *, alone: bool) -> list[str]:
    """Runs what is there of one table, prints it and writes table.md; what it lacks where nothing can be run.

    Raises:
      JvidpruneError: nothing of any task can be asked, or with --strict something of one cannot.
    """
    found = look(table, args)
    if found.model is None or not found.tasks or not found.methods:
        if alone:
            print(report(table, dataclasses.replace(found, absent=[]), {}))
            lines = "".join(f"\n  - {text}" for text in found.absent)
            print(f"error: {table.name} cannot be run, for want of:{lines}", file=sys.stderr)
        return found.absent
    text = report(table, found, *run(table, found, args))
    target = args.out / table.name / "table.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf8")
    print(text)
    return []


if __name__ == "__main__":
    sys.exit(main())
