"""The files of a sweep that people open: tables (table.csv and others), two plots and report.html."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jvidprune.evals.controls import written
from jvidprune.evals.counts import Against
from jvidprune.evals.difficulty import write_difficulty
from jvidprune.evals.effect import flagged, write_effects
from jvidprune.evals.judge.scores import write_judged
from jvidprune.evals.matching import unreached
from jvidprune.evals.paired import pair_row, write_pairs
from jvidprune.evals.pairs import make_job
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.records import counted
from jvidprune.evals.results import SweepTable, write_csv
from jvidprune.evals.runner import SweepRecords, matcher_of
from jvidprune.evals.spans import write_grounding
from jvidprune.evals.subset import Subset
from jvidprune.evals.throughput_table import throughput_notes, throughput_records, write_throughput
from jvidprune.files import atomic_output
from jvidprune.llm.encoded import sweep_video
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.tokens import QUESTION
from jvidprune.video.decode import Clip
from jvidprune.viz.decision import Decision, decision_of
from jvidprune.viz.sweep_counts import shown_axis
from jvidprune.viz.sweep_examples import Decide, disagreements, draw_examples
from jvidprune.viz.sweep_plots import nearest_ratio, retention_plot, standalone, time_plot
from jvidprune.viz.sweep_report import sweep_page


def write_outputs(
    llm: VideoLLM,
    task: Any,
    plan: SweepPlan,
    found: SweepRecords,
    table: SweepTable,
    model: str,
    against: Against = "tokens",
) -> dict[str, Any]:
    """Everything a reader opens; each file appears whole.

    Args:
      llm: the model that was asked.
      task: what it was asked.
      plan: methods and ratios.
      found: the records.
      table: made of them.
      model: what the model is called.
      against: what accuracies are drawn against, in retention.svg and at first in the page.

    Returns:
      A record for machines.
    """
    folder = found.files.folder
    write_csv(table, folder / "table.csv")
    write_pairs(table.pairs, folder / "pairs.csv")
    write_effects(table.effects.values(), folder / "effects.csv")
    write_grounding(table.grounding, folder / "grounding.csv")
    write_judged(table.opened.rows, folder / "judged.csv")
    write_difficulty(table.difficulty, folder)
    write_throughput(table.throughput, folder)

    shown = disagreements(counted(found.samples), nearest_ratio(table))
    examples = draw_examples(shown, task, _decider(llm, plan, table.titles))
    page = sweep_page(table, examples, model=model, note=_note(llm, task, plan, table), against=against)
    drawn = retention_plot(table, shown_axis(table, against))
    files = {"retention.svg": standalone(drawn), "time.svg": standalone(time_plot(table))}
    for name, text in (files | {"report.html": page}).items():
        with atomic_output(folder / name) as part:
            part.write_text(text, encoding="utf8")
    return _record(llm, found, table)


def _decider(llm: VideoLLM, plan: SweepPlan, titles: dict[str, str]) -> Decide:
    """What methods decide about a clip and a question at a ratio, for `draw_examples`."""
    ratios, matcher = {name: some for name, _, some in plan.groups()}, matcher_of(llm, plan)

    def decide(clip: Clip, question: str, methods: Sequence[str], ratio: float) -> dict[str, Decision]:
        encoded = llm.encode(clip, needs=plan.needs - QUESTION)
        out = {}
        for name in methods:
            video = llm.with_evidence(encoded, plan.reducers[name], question)
            # Those of this clip, as the run asked for them: its compiled program serves again.
            job = make_job(name, plan.reducers[name], video.tokens, ratios[name], matcher)
            reduced = sweep_video(video, job.reducer, job.asked)[job.ratios.index(ratio)]
            out[name] = decision_of(reduced, titles[name])
        return out

    return decide


def _note(llm: VideoLLM, task: Any, plan: SweepPlan, table: SweepTable) -> str:
    """What a reader has to know before the numbers; empty where there is nothing."""
    note = ""
    if llm.untrained:
        note = "The weights of this model are random: accuracies are noise, token counts and times are real."
    elif isinstance(task, Subset):
        asked = ", ".join(f"{category} ({kind.replace('_', '/')})" for category, kind in task.pairs)
        note = f"Asked are the questions that this model was measured to answer above chance: {asked}; on the others "
        note += "nothing can be seen of pruning (--questions all asks them too)."
    rebuilt = [table.titles[name] for name in plan.methods if "(reconstruction)" in table.titles[name]]
    if rebuilt:
        note += f" No code is public of {', '.join(rebuilt)}: what is shown was written after its description."
    return note.strip()


def _record(llm: VideoLLM, found: SweepRecords, table: SweepTable) -> dict[str, Any]:
    """What is told to machines; see `write_outputs`."""
    folder = found.files.folder
    return {
        "folder": str(folder),
        "complete": True,
        "report": str(folder / "report.html"),
        "untrained": llm.untrained,
        "resumed_samples": found.resumed,
        "samples": len(found.samples),
        "unjudged": table.unjudged,
        "judged": [row.row() for row in table.opened.rows],
        "grounding": [one.row() for one in table.grounding],
        "rows": [
            _known(table.cells[run[0], run[1], "all"]) | {"category_mean": table.category_mean(*run)}
            for run in table.runs
        ],
        "costs": [_known(table.costs[run]) for run in table.runs],
        "counts": [_known(table.counts[run]) for run in table.runs],
        "controls": [written(standing) for standing in table.standings.values()],
        "two_best": [pair_row(best) for ratio in table.ratios if (best := table.best_two(ratio)) is not None],
        "one_frame_answers": table.frozen,
        "resolution": [dataclasses.asdict(one) for r in table.ratios if (one := table.resolution(r)) is not None],
        "throughput": throughput_records(table.throughput),
        "throughput_notes": throughput_notes(table.throughput),
        "lengths": table.difficulty.length_rows(),
        "hard": table.difficulty.hard_rows(),
        "hard_note": table.difficulty.note,
        "did_not_act": flagged(table.effects.values(), table.titles),
        "matched": [_plain(one.row()) for one in table.matched.values()],
        "out_of_reach": unreached(table.refused),
        "refused": table.refused,
    }


def _known(row: Any) -> dict[str, Any]:
    """Fields of a row; numbers that do not exist are None, as JSON has no NaN."""
    return _plain(dataclasses.asdict(row))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in row.items()}
