"""`jvidprune judge`: has the open answers of a sweep read by a judge, or exports them for one; resumes if stopped."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from jvidprune.cli.options import OUTPUT, Common, print_json
from jvidprune.errors import JvidpruneError, TransientError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from jvidprune.cli.console import Console
    from jvidprune.evals.judge.asking import Outcome
    from jvidprune.evals.judge.cases import Case
    from jvidprune.evals.judge.scores import JudgedRun
    from jvidprune.evals.judge.server import ChatServer
    from jvidprune.evals.store import RecordStore

LISTED = 20
"""Answers without a verdict that are printed; machines get all of them."""


@dataclasses.dataclass(frozen=True)
class JudgeChoice:
    """Who judges, and how."""

    endpoint: str | None = None
    """Address of an OpenAI-compatible server, as in http://localhost:8000/v1; without one, answers are exported."""
    model: str | None = None
    """The judge: as the server calls it, or whoever gave the verdicts of a file."""
    verdicts: Path | None = None
    """Read the verdicts of a judge elsewhere: JSON lines with "id" and "score", "verdict" or "reply"."""
    save: Annotated[Path | None, arg(name="out")] = None
    """File that answers are exported to; by default to_judge.jsonl in the run's folder."""
    key_env: str = "JUDGE_API_KEY"
    """Environment variable with the key of the server, if it wants one; the key is stored and printed nowhere."""
    parallel: int = 4
    """Requests on their way at a time."""
    timeout: float = 120.0
    """Seconds for one try of a request."""
    tries: int = 6
    """Tries of a request before its answer is listed as not judged."""
    wording: Literal["ours", "lmms_eval"] = "ours"
    """Whose words the judge is asked in: ours, or those of lmms-eval's own judges, read from its installed files."""
    request: str = "{}"
    """JSON object of further settings of a request; null takes out one of temperature=0 and max_tokens=512."""

    def check(self) -> None:
        """Refuses what contradicts itself.

        Raises:
          JvidpruneError: two judges, a judge without a name, or an export beside a judge.
        """
        if self.endpoint is not None and self.verdicts is not None:
            raise JvidpruneError("--endpoint asks a judge, --verdicts reads what one said: give one of them.")
        judging = self.endpoint is not None or self.verdicts is not None
        if judging and not (self.model or "").strip():
            raise JvidpruneError("say who judges with --model.")
        if judging and self.save is not None:
            raise JvidpruneError("--out is for answers that are exported: leave out --endpoint and --verdicts.")

    def server(self) -> "ChatServer":
        """The server, with the key of the environment.

        Raises:
          JvidpruneError: no usable address, model, key, number or setting.
        """
        from jvidprune.errors import reason
        from jvidprune.evals.judge.server import ChatServer
        from jvidprune.files import parse_json

        try:
            settings = parse_json(self.request)
        except ValueError as error:
            raise JvidpruneError(f"--request is no JSON: {reason(error)}.") from error
        if not isinstance(settings, dict) or {"model", "messages", "stream", "n"} & set(settings):
            raise JvidpruneError('--request is a JSON object without "model", "messages", "stream" and "n".')
        key = os.environ.get(self.key_env, "").strip()
        return ChatServer(self.endpoint or "", self.model or "", key, settings, timeout=self.timeout, tries=self.tries)


CHOICE = JudgeChoice()


def judge(
    run: Annotated[Path, Positional],
    /,
    *,
    choice: Annotated[JudgeChoice, OmitArgPrefixes] = CHOICE,
    out: Common = OUTPUT,
) -> None:
    """Have the open answers of a sweep read by a language model behind a server, or export them; resumes if stopped.

    Verdicts are kept in the folder of the run; scores stand in its report.html and judged.csv.

    Args:
      run: folder of a sweep.
    """
    console = out.console()
    found, record, outcome = judged(run, choice, console)
    if out.json:
        print_json(record)
    elif out.quiet:
        print(record["exported"] or record["report"])
    else:
        show(console, found, record, names=shown_names(found))
    if outcome is not None and outcome.stopped:
        _stop(outcome)


def judged(run: Path, choice: JudgeChoice, console: "Console") -> "tuple[JudgedRun, dict[str, Any], Outcome | None]":
    """Asks a judge, reads a file of verdicts, or exports; then makes the scores of all judges anew.

    Args:
      run: folder of a sweep.
      choice: who judges.
      console: talks to people.

    Returns:
      The scores, a plain record for machines, and what came of asking, None after an export.

    Raises:
      TransientError: another process writes to the folder.
      JvidpruneError: no finished sweep with open answers, a choice that contradicts itself, files that cannot be used.
    """
    from jvidprune.errors import quoted
    from jvidprune.evals.hosts import only_writer
    from jvidprune.evals.judge.asking import in_words
    from jvidprune.evals.judge.cases import cases_of, open_answers
    from jvidprune.evals.judge.exchange import TO_JUDGE, write_answers
    from jvidprune.evals.judge.published import in_published_words, published_words
    from jvidprune.evals.judge.scores import judged_run
    from jvidprune.evals.judge.verdicts import known_verdicts, open_verdicts
    from jvidprune.files import load_json
    from jvidprune.viz.judged_report import write_judged_files

    choice.check()
    server = choice.server() if choice.endpoint is not None else None
    answers, broken = open_answers(run)
    outcome, exported, lines = None, None, 0
    with only_writer(run):
        cases, bad = cases_of(answers)
        bad, words = [*broken, *bad], ""
        if choice.wording == "lmms_eval":
            words = published_words()
            cases, others = in_published_words(cases)
            bad += others
        if server is None and choice.verdicts is None:
            exported, known = choice.save or run / TO_JUDGE, known_verdicts(run)
            judge = in_words(choice.model, words) if choice.model else None
            seen = known.get(judge, {}) if judge else {name for one in known.values() for name in one}
            lines = write_answers(cases, exported, seen)
        else:
            store = open_verdicts(run)
            try:
                with console.working():
                    outcome = _outcome(cases, choice, words, server, store, console)
            finally:
                store.close()
            bad += outcome.not_judged
        found = judged_run(run, answers)
        settings = load_json(run / "run.json") if (run / "run.json").exists() else {}
        settings = settings if isinstance(settings, dict) else {}
        report = write_judged_files(run, found, shown_names(found), settings)
    record = {
        "folder": str(run),
        "report": str(report),
        "exported": None if exported is None else str(exported),
        "lines": lines,
        "judge": None if outcome is None else outcome.judge,
        "new": 0 if outcome is None else outcome.new,
        "answers": found.answers,
        "unjudged": found.awaiting,
        "stopped": "" if outcome is None else outcome.stopped,
        "not_judged": [dataclasses.asdict(one) | {"reason": quoted(one.reason, 1000)} for one in bad],
        "judged": [row.row() for row in found.rows],
    }
    return found, record, outcome


def _outcome(
    cases: "list[Case]",
    choice: JudgeChoice,
    words: str,
    server: "ChatServer | None",
    store: "RecordStore",
    console: "Console",
) -> "Outcome":
    """Asks the server, or reads the file."""
    from jvidprune.cli.console import marked
    from jvidprune.evals.judge.asking import ask_judge, in_words
    from jvidprune.evals.judge.exchange import read_verdicts

    if server is None:
        assert choice.verdicts is not None
        return read_verdicts(cases, choice.verdicts, in_words(choice.model or "", words), store)
    bar = console.task(f"asking {server.model}")
    report = lambda one: console.note(f"not judged: {marked(str(one))}")  # noqa: E731
    return ask_judge(cases, server, store, words=words, parallel=choice.parallel, progress=bar, report=report)


def shown_names(found: "JudgedRun") -> dict[str, str]:
    """Methods as they are shown; those that cannot be looked up here, e.g. of a file elsewhere, as they were typed."""
    from jvidprune.evals.plan import BASELINES
    from jvidprune.reducers import registry

    names = dict(BASELINES)
    for row in found.rows:
        if row.method not in names:
            try:
                names[row.method] = registry.title(row.method)
            except (JvidpruneError, ImportError):
                names[row.method] = row.method
    return names


def show(console: "Console", found: "JudgedRun", record: dict[str, Any], names: "Mapping[str, str]") -> None:
    """Scores, what was not judged, and where the files are."""
    from jvidprune.cli.console import marked
    from jvidprune.evals.judge.cases import NotJudged

    show_judged(console, found, names)
    bad = record["not_judged"]
    if bad:
        console.print(f"[yellow]not judged: {len(bad):,}[/yellow]")
    for one in bad[:LISTED]:
        console.print(f"  {marked(str(NotJudged(**one)))}", plain=True, unbroken=True)
    if len(bad) > LISTED:
        console.print(f"  and {len(bad) - LISTED:,} more")
    if record["exported"]:
        console.print(
            f"{record['lines']:,} requests to a judge: [bold]{marked(record['exported'])}[/bold]", unbroken=True
        )
        console.print(
            f'its verdicts, a line each as in {{"id": ..., "score": ...}}: jvidprune judge {marked(record["folder"])} '
            "--verdicts FILE --model NAME",
            plain=True,
            unbroken=True,
        )
    else:
        console.print(f"{record['new']:,} new verdicts of {marked(record['judge'])} on {record['answers']:,} answers")
    if record["unjudged"]:
        console.print(waiting(record["unjudged"], record["folder"]), unbroken=True)
    console.print(f"report: [bold]{marked(record['report'])}[/bold]", unbroken=True)


def show_judged(console: "Console", found: "JudgedRun", names: "Mapping[str, str]") -> None:
    """The table of scores, if there are any."""
    from rich import box
    from rich.table import Table

    from jvidprune.cli.console import marked
    from jvidprune.evals.judge.scores import judged_lines

    if not found.rows:
        return
    aspects, lines = judged_lines(found.rows, names)
    intervals = console.width >= 130
    caption = "open answers: mean scores" + " with 95 % intervals" * intervals
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("method")
    for name in ("retention", *aspects, "judged"):
        table.add_column(name, justify="right", min_width=len(name.split()[0]))
    table.add_column("judge", overflow="fold")
    for line in lines:
        cells = ["–" if c is None else f"{c.score} {c.bounds}" if intervals else c.score for c in line.cells]
        table.add_row(*map(marked, (line.method, line.retention, *cells, line.answers, line.judge)))
    console.print(table)


def waiting(number: int, folder: str) -> str:
    """How many open answers no judge has read, and what to do about it."""
    from jvidprune.cli.console import marked

    many = f"{number:,} open answers await" if number != 1 else "1 open answer awaits"
    return f"{many} a judge: jvidprune judge {marked(folder)}"


def _stop(outcome: "Outcome") -> "NoReturn":
    """Ends in the sentence about why not all were asked.

    Raises:
      TransientError: the same command may succeed later.
      JvidpruneError: it would not.
    """
    kept = f"{outcome.stopped.rstrip('.')}; {outcome.new:,} new verdicts are kept, run again to go on."
    raise (TransientError if outcome.passing else JvidpruneError)(kept)
