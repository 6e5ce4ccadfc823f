"""Puts the open answers of a run to a judge behind a server, several at a time; every verdict is kept as it comes."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from jvidprune.errors import JvidpruneError, reason
from jvidprune.evals.judge.cases import Case, NotJudged
from jvidprune.evals.judge.server import ChatServer, NoReply, Unusable
from jvidprune.evals.judge.verdicts import verdict
from jvidprune.evals.store import RecordStore

ASKINGS = 3
"""How often a judge is asked for a score that can be read."""

NO_REPLIES = 5
"""Requests in a row without a reply after which a server is left alone."""

NO_SCORES = 20
"""Requests in a row without a score after which a judge is given up."""

Progress = Callable[[int, int], None]
"""Called with how many requests are done of how many."""


class Unreadable(Exception):
    """A judge replied, and never with a score."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of asking.

    Attributes:
      judge: name that its verdicts are kept under.
      new: verdicts that were added.
      not_judged: answers that have none, with the reason.
      stopped: why not all were asked, as a sentence; empty if they were.
      passing: whether the same command may then succeed later.
    """

    judge: str
    new: int
    not_judged: list[NotJudged]
    stopped: str = ""
    passing: bool = False


@dataclasses.dataclass
class _State:
    """What the workers share."""

    waiting: Iterator[Case]
    failed: dict[str, str]
    done: int = 0
    new: int = 0
    no_replies: int = 0
    no_scores: int = 0


def judge_name(server: ChatServer, words: str = "") -> str:
    """Who judges: the model, what was changed of its request, and in whose words if not ours, in one line."""
    changed = ", ".join(f"{name}={value}" for name, value in sorted(server.settings.items()))
    return in_words(f"{server.model} ({changed})" if changed else server.model, words)


def in_words(judge: str, words: str) -> str:
    """The name of a judge that was asked in somebody's words; empty ones are ours."""
    return f"{judge}, in the words of {words}" if words else judge


def ask_judge(
    cases: Sequence[Case],
    server: ChatServer,
    verdicts: RecordStore,
    *,
    words: str = "",
    parallel: int = 4,
    progress: Progress | None = None,
    report: Callable[[NotJudged], None] | None = None,
) -> Outcome:
    """Asks for the verdicts that are missing.

    A verdict is on the disk before the next request of its worker goes out, so a process that is killed loses those
    that were on their way. An answer whose judge gives no reply or no score costs the others nothing; it is asked for
    again when this is called again. A server that refuses the key or the model, gives no reply to several requests in
    a row or asks for a long pause ends the asking.

    Args:
      cases: of the run.
      server: the judge.
      verdicts: of the run.
      words: whose words the cases are in, part of the judge's name; empty for ours.
      parallel: requests on their way at a time.
      progress: called after every request.
      report: called with the first answer of every request that stays without a verdict.

    Raises:
      JvidpruneError: `parallel` is not 1 to 256, the verdicts cannot be written, or this runs inside an event loop.
    """
    if not 1 <= parallel <= 256:
        raise JvidpruneError(f"1 to 256 requests can be on their way at a time, got {parallel}.")
    name = judge_name(server, words)
    first = {case.request: case for case in reversed(cases)}
    missing = [case for case in first.values() if (case.request, name) not in verdicts][::-1]
    state = _State(iter(missing), {})
    stopped: Unusable | None = None
    if missing:
        _check_no_loop()
        work = _all(server, name, state, verdicts, min(parallel, len(missing)), len(missing), progress, report)
        stopped = asyncio.run(work)
    why = f"it was not asked: {stopped}" if stopped else "it was not asked."
    left = {case.request: state.failed.get(case.request, why) for case in missing}
    bad = [
        NotJudged.of(case, left[case.request])
        for case in cases
        if case.request in left and (case.request, name) not in verdicts
    ]
    return Outcome(name, state.new, bad, str(stopped or ""), stopped is not None and stopped.passing)


def _check_no_loop() -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise JvidpruneError("a judge is asked outside of event loops: in a notebook run `jvidprune judge`.")


async def _all(
    server: ChatServer,
    name: str,
    state: _State,
    verdicts: RecordStore,
    workers: int,
    total: int,
    progress: Progress | None,
    report: Callable[[NotJudged], None] | None,
) -> Unusable | None:
    """Runs the workers; why they stopped before the end, if they did."""

    async def work() -> None:
        for case in state.waiting:
            try:
                score, reply, askings = await ask_one(case, server)
            except (NoReply, Unreadable) as error:
                state.failed[case.request] = str(error)
                if report is not None:
                    report(NotJudged.of(case, str(error)))
                _count_failure(state, error, server)
            else:
                verdicts.append([verdict(case, name, score, reply, askings)])
                state.new += 1
                state.no_replies = state.no_scores = 0
            state.done += 1
            if progress is not None:
                progress(state.done, total)

    ended: list[Exception] = []
    async with server:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        except* Exception as found:
            ended += found.exceptions
    for error in ended:
        if isinstance(error, OSError):
            raise JvidpruneError(f"cannot keep verdicts in {verdicts.path}: {reason(error)}.") from error
        if not isinstance(error, Unusable):
            raise error
    return next((error for error in ended if isinstance(error, Unusable)), None)


async def ask_one(case: Case, server: ChatServer) -> tuple[float, str, int]:
    """The score of a case, the reply it was read in, and how often the judge was asked.

    Raises:
      NoReply: of the server.
      Unreadable: the judge replied `ASKINGS` times, and never with a score.
      Unusable: no further request makes sense.
    """
    messages = case.messages
    problem = ""
    for asking in range(1, ASKINGS + 1):
        reply = await server.reply(messages)
        try:
            return case.read(reply), reply, asking
        except ValueError as error:
            problem = str(error)
            said = {"role": "assistant", "content": reply.encode("utf-8", "replace").decode() or "(nothing)"}
            messages = [*case.messages, said, case.reminder]
    raise Unreadable(f"no score could be read, {ASKINGS} times: {problem}.")


def _count_failure(state: _State, error: Exception, server: ChatServer) -> None:
    """Ends the asking where a judge fails again and again.

    Raises:
      Unusable: it does.
    """
    if isinstance(error, NoReply):
        state.no_replies += 1
        if state.no_replies >= NO_REPLIES:
            raise Unusable(
                f"{server.shown} gave no reply to {NO_REPLIES} requests in a row, to the last because "
                f"{str(error).rstrip('.')}.",
                passing=True,
            )
    else:
        state.no_replies, state.no_scores = 0, state.no_scores + 1
        if state.no_scores >= NO_SCORES:
            raise Unusable(
                f"{server.model} gave no score to {NO_SCORES} requests in a row, to the last because {error}",
                passing=False,
            )
