"""`jvidprune probe`: what methods leave of objects in generated clips, without a language model; seconds."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice, print_json
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from rich.table import Table

    from jvidprune.cli.console import Console
    from jvidprune.evals.probe import ProbeTable

METHODS = "attention_topk,visionzip,fastvid,flashvid,holitom,aot,stop,ottvid,prunevid"
"""What is probed unless the user says otherwise."""

CONTROLS = "random,uniform,pool_space,pool_time,norm_topk,oracle"
"""What methods stand beside unless the user says otherwise."""


@dataclasses.dataclass(frozen=True)
class ProbeChoice:
    """What to probe."""

    methods: str = METHODS
    """As in "flashvid(alpha=0.5),./my_reducer.py:Mine", separated by commas; "all" takes every method that works
    before the language model."""
    controls: str = CONTROLS
    """Reducers that run beside the methods; "none" leaves them out. "oracle" is told where objects are."""
    ratios: str = "0.25,0.2,0.15,0.1,0.05"
    """Retention ratios in (0, 1], separated by commas."""
    clips: int = 48
    """Generated clips that are measured."""
    fitted: int = 64
    """Other clips that the linear read-outs are fitted on."""
    save: Annotated[Path, arg(name="out")] = Path("runs/probe")
    """Folder of probe.csv and report.html."""


CHOICE = ProbeChoice()


def probe(
    *,
    choice: Annotated[ProbeChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Tell what methods leave of generated clips without a language model: objects, purity, read-outs; seconds.

    Clips are those of the procedural benchmark, whose object masks are known. Needs no training.
    """
    from jvidprune.cli.console import marked

    console = out.console()
    table, record = probed(choice, model=model, console=console)
    if out.json:
        print_json(record)
    elif out.quiet:
        print(record["report"])
    else:
        console.print(probe_table(table, intervals=console.width >= 205, wide=console.width >= 130))
        for name, why in table.refused.items():
            console.print(f"[dim]{marked(name)}: {marked(why)}[/dim]", plain=True)
        console.print(f"all ratios and intervals: [bold]{marked(record['report'])}[/bold]", unbroken=True)


def probed(choice: ProbeChoice, *, model: ModelChoice, console: "Console") -> "tuple[ProbeTable, dict[str, Any]]":
    """Probes and writes probe.csv and report.html.

    Args:
      choice: what to probe.
      model: whose tower makes the tokens.
      console: talks to people.

    Returns:
      What was found, and a plain record for machines.

    Raises:
      JvidpruneError: no or unknown methods, impossible numbers, or a folder that cannot be written to.
    """
    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.evals.probe import probe as measure
    from jvidprune.evals.probe.run import ORACLE, before_the_model
    from jvidprune.evals.probe.table import write_probe
    from jvidprune.expressions import split_list
    from jvidprune.fields import Count, checked
    from jvidprune.files import atomic_output, check_folder
    from jvidprune.reducers import registry
    from jvidprune.reducers.protocol import check_ratio
    from jvidprune.viz.probe_page import probe_page

    controls = [] if choice.controls == "none" else split_list(choice.controls)
    all_of_them = choice.methods == "all"
    names = [n for n in before_the_model() if n not in controls] if all_of_them else split_list(choice.methods)
    if not names:
        raise JvidpruneError("a probe needs at least one method: names separated by commas, as in random,flashvid.")
    for text in (*names, *controls):
        if text != ORACLE:
            registry.from_text(text)
    ratios = [check_ratio(part.strip()) for part in choice.ratios.split(",") if part.strip()]  # type: ignore[arg-type]
    checked(choice.clips, Count, "clips")
    checked(choice.fitted, Count, "fitted")
    check_reading(model)
    if model.fps is not None:
        raise JvidpruneError("clips of the procedural benchmark have a frame a second: say how many with --frames.")
    check_folder(choice.save)
    with console.working():
        llm = open_model(model, console)
        table = measure(
            llm,
            names,
            ratios,
            controls=controls,
            clips=choice.clips,
            fitted=choice.fitted,
            frames=model.frames,
            progress=console.bars(),
        )
    choice.save.mkdir(parents=True, exist_ok=True)
    shown = "the embedded model" if model.model is None else llm.loaded.folder.name
    write_probe(table, choice.save / "probe.csv")
    with atomic_output(choice.save / "report.html") as part:
        part.write_text(probe_page(table, model=shown), encoding="utf8")
    facts = {"clips": table.clips, "fitted": table.fitted, "visual": table.visual, "refused": dict(table.refused)}
    return table, {"report": str(choice.save / "report.html"), **facts, "rows": table.rows()}


def probe_table(table: "ProbeTable", *, intervals: bool, wide: bool) -> "Table":
    """Methods by measures at the ratio nearest to 10 %, in per cent."""
    from rich import box
    from rich.table import Table

    from jvidprune.cli.console import marked
    from jvidprune.evals.probe.table import BASELINES
    from jvidprune.viz.probe_page import COLUMNS

    columns = [column for column in COLUMNS if wide or column.narrow]
    caption = f"at {100 * table.first:g} % of {table.visual} tokens · {table.clips} clips · per cent"
    caption += " with 95 % intervals" * intervals + " · tokens of objects: kept+merged into others"
    options = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "collapse_padding": True, "pad_edge": False}
    out = Table(caption=caption, caption_justify="left", **options)
    out.add_column("", no_wrap=True, max_width=None if wide else 14)
    for head in ("rows", *(column.head for column in columns)):
        out.add_column(head, justify="right", no_wrap=True)
    for run in table.at(table.first):
        cells = [column.text(table.values[run], intervals) for column in columns]
        faint = run[0] in BASELINES or run[0] in table.controls
        count = f"{table.tokens[run]:,.0f}" if table.tokens[run] else ""
        name = marked(table.titles.get(run[0], run[0]))
        out.add_row(name, count, *map(marked, cells), style="dim" if faint else None)
    return out
