"""Every benchmark that is there under the same methods, and one report of all: controls, flags, tests and costs.

    python experiments/benchmarks.py --data FOLDER --model FOLDER --methods flashvid,visionzip --ratios 0.25,0.1

--data holds a folder for each benchmark (videomme, mvbench, ...) in its published layout. Each is a run of its own in
--out, which resumes if stopped and has its own page with --each; report.html and table.csv in --out join them. What is
not there and what cannot be asked, benchmarks, videos and annotations, is listed and counted and holds up nothing else.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError

REPORT = "report.html"


def main(words: list[str] | None = None) -> int:
    """Runs what is there; 2 where nothing can be run."""
    from jvidprune.cli.sweep import CONTROLS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmark folders")
    parser.add_argument("--model", help="checkpoint folder or hub id; by default the embedded model")
    parser.add_argument("--methods", default="flashvid,visionzip,fastvid", help="as for jvidprune sweep")
    parser.add_argument("--controls", default=CONTROLS, help="as for jvidprune sweep")
    parser.add_argument("--ratios", default="0.25,0.1", help="retention ratios, separated by commas")
    parser.add_argument("--tasks", help="some of the benchmarks, separated by commas")
    parser.add_argument("--prompts", choices=("lmms_eval", "stop", "official"), help="wording where a benchmark has it")
    parser.add_argument("--clips", type=int, help="the first so many clips of each")
    parser.add_argument("--frames", type=int, help="frames of a video")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--throughput", action="store_true", help="measure speed and memory as well, on one clip")
    parser.add_argument("--largest-batch", type=int, default=32, help="of --throughput: the largest that is tried")
    parser.add_argument("--each", action="store_true", help="write a page for each benchmark, too")
    parser.add_argument("--strict", action="store_true", help="stop at the first video or annotation that is bad")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(words)
    try:
        record = run(args)
    except JvidpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({name: record[name] for name in ("report", "samples", "benchmarks", "absent")}, indent=1))
    print(f"{len(record['left_out'])} left out, listed in {record['report']}")
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmarks and writes the joined files; a record for machines.

    Raises:
      JvidpruneError: nothing of any benchmark can be asked, unknown names, or with --strict anything that is bad.
    """
    from jvidprune.cli.console import Console
    from jvidprune.cli.left_out import listed
    from jvidprune.cli.options import ModelChoice
    from jvidprune.cli.reading import open_model
    from jvidprune.cli.sweep import SweepChoice
    from jvidprune.evals.joined import JoinedTask, join_runs
    from jvidprune.evals.records import counted
    from jvidprune.evals.results import make_table
    from jvidprune.evals.throughput import check_limit, measure_throughput
    from jvidprune.reducers import registry
    from jvidprune.viz.sweep_files import write_outputs

    check_limit(args.largest_batch)
    choice = SweepChoice(methods=args.methods, controls=args.controls, ratios=args.ratios)
    folders, absent = places(args)
    console, found, tasks, failed, speed = Console(), {}, {}, {}, []
    with console.working():
        llm = open_model(ModelChoice(args.model, args.frames, dtype=args.dtype), console)
        for name, folder in folders.items():
            try:
                task, plan, records = answered(llm, name, folder, choice, args, console)
            except JvidpruneError as error:
                if args.strict:
                    raise
                failed[name] = str(error)
                continue
            tasks[name], found[name] = task, records
            if args.throughput and not speed and counted(records.samples):
                measured = measure_throughput(llm, task, plan, records, limit=args.largest_batch)
                speed = [dataclasses.replace(one, clip=f"{name}/{one.clip}") for one in measured]
            if args.each:
                one_page(llm, task, plan, records)
        if not any(counted(records.samples) for records in found.values()):
            raise JvidpruneError(next(iter(failed.values()), f"no answer of {', '.join(found)} is right or wrong."))
        console.start("writing the report")
        joined, parts = join_runs(found, tasks, args.out, failed)
        titles = {name: registry.title(name) for name in plan.reducers}
        table = make_table(joined, JoinedTask(tasks), titles)
        table = dataclasses.replace(table, throughput=speed, parts=parts)
        shown = "the embedded model" if args.model is None else llm.loaded.folder.name
        record = write_outputs(llm, JoinedTask(tasks), plan, joined, table, shown)
    known = {"left_out": listed(joined.left_out), "absent": absent}
    return record | known | {"benchmarks": {one.name: one.questions + one.open for one in parts}}


def places(args: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """The folders of the benchmarks that are there, and the names of those that are not.

    Raises:
      JvidpruneError: an unknown name, or none is there.
    """
    from jvidprune.evals.datasets import names, prompt_presets

    wanted = names() if args.tasks is None else tuple(args.tasks.split(","))
    for name in wanted:
        prompt_presets(name)
    there = {name: args.data / name for name in wanted if (args.data / name).is_dir()}
    if not there:
        raise JvidpruneError(f"{args.data} has no folder named after a benchmark: {', '.join(wanted)}.")
    return there, [name for name in wanted if name not in there]


def answered(llm: Any, name: str, folder: Path, choice: Any, args: argparse.Namespace, console: Any) -> Any:
    """One benchmark: what is asked, under what, and the records of its run.

    Raises:
      JvidpruneError: nothing of it can be asked, or with --strict something cannot.
    """
    from jvidprune.cli.left_out import nothing_answered
    from jvidprune.evals.datasets import answer_tokens, prompt_presets
    from jvidprune.evals.plan import BASELINES, SweepPlan
    from jvidprune.evals.runner import run_sweep
    from jvidprune.evals.tasks import open_task

    prompts = args.prompts if args.prompts in prompt_presets(name) else None
    task = open_task(name, folder, llm, clips=args.clips, frames=args.frames, strict=args.strict, prompts=prompts)
    methods = {text: llm.reducer(text) for text in choice.names() if text not in BASELINES}
    controls = {text: llm.reducer(text) for text in choice.controls_for(llm) if text not in BASELINES}
    plan = SweepPlan(methods, choice.read_ratios(), answer_tokens(name), controls=controls)
    bar = console.task(name, len(task))
    out = args.out / name
    records = run_sweep(llm, task, plan, out, strict=args.strict, progress=lambda _, done, total: bar(done, total))
    if not records.samples:
        raise JvidpruneError(nothing_answered(name, records.left_out))
    return task, plan, records


def one_page(llm: Any, task: Any, plan: Any, records: Any) -> None:
    """The files of one benchmark alone."""
    from jvidprune.evals.judge.scores import judged_run
    from jvidprune.evals.plan import BASELINES
    from jvidprune.evals.records import counted
    from jvidprune.evals.results import make_table
    from jvidprune.reducers import registry
    from jvidprune.viz.judged_report import write_judged_files
    from jvidprune.viz.sweep_files import write_outputs

    titles = {name: registry.title(name) for name in plan.reducers}
    if counted(records.samples):
        write_outputs(llm, task, plan, records, make_table(records, task, titles), llm.loaded.folder.name)
    else:
        folder = records.files.folder
        write_judged_files(folder, judged_run(folder, records.samples), BASELINES | titles, records.identity)


if __name__ == "__main__":
    sys.exit(main())
