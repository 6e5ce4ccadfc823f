"""Cases in the words of lmms-eval's own judges, which are read from its installed task files; none is copied here.

VCGBench's five aspects (`tasks/videochatgpt`, the prompts of Video-ChatGPT's authors) and the agreement of an open
answer with its reference (`tasks/videoevalpro`, replies A, B or C). lmms-eval has no judge for descriptions of events,
and the one of TempCompass captions sees no right answer: neither is asked in its words. The files are parsed, and of
the first only the functions that write messages are run, without names of anything outside; lmms-eval is not imported.
"""

import ast
import copy
import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, reason
from jvidprune.evals.judge.cases import Case, NotJudged

_CHAT, _PRO = "tasks/videochatgpt/utils.py", "tasks/videoevalpro/utils.py"
_PROMPT = "VIDEOEVALPRO_JUDGE_PROMPT"
_GENERIC = {name: name for name in ("correctness", "context", "temporal")} | {"detail": "detailed_orientation"}
"""Aspects, and what lmms-eval's function calls them."""

GRADES = "ABC"
"""Replies of VideoEval-Pro's judge: correct, incorrect, not attempted."""


def published_words() -> str:
    """Whose words they are, with the version that is installed.

    Raises:
      JvidpruneError: lmms-eval is not installed.
    """
    _folder()
    try:
        return f"lmms-eval {importlib.metadata.version('lmms-eval')}"
    except importlib.metadata.PackageNotFoundError:
        return "lmms-eval"


def in_published_words(cases: Sequence[Case]) -> tuple[list[Case], list[NotJudged]]:
    """The cases whose messages lmms-eval has words for, with these, and the others.

    Args:
      cases: of a run.

    Raises:
      JvidpruneError: lmms-eval is not installed, or its files are not as version 0.7.3 has them.
    """
    found, bad = [], []
    for case in cases:
        sent, letters = _messages(case.rubric.aspect, dict(case.material))
        if sent:
            found.append(dataclasses.replace(case, sent=sent, letters=letters))
        else:
            bad.append(NotJudged.of(case, f"lmms-eval has no judge of {case.rubric.aspect}: ask in our words."))
    return found, bad


def _messages(aspect: str, material: dict[str, str]) -> tuple[tuple[tuple[str, str], ...], str]:
    """(role, text) of the messages about one case, and the letters of a reply; nothing where there are no words."""
    if aspect in _GENERIC:
        texts = (material["question"], material["reference"], material["answer"], _GENERIC[aspect], 64)
        return _said(_function(_folder() / _CHAT, "get_eval_generic"), *texts), ""
    if aspect == "consistency":
        names = ("question_1", "question_2", "reference", "answer_1", "answer_2")
        return _said(_function(_folder() / _CHAT, "get_eval_consistency"), *(material[name] for name in names), 64), ""
    if aspect == "correct":
        texts = {"question": material["question"], "ground_truth": material["reference"]}
        text = _text(_folder() / _PRO, _PROMPT).format(prediction=material["answer"], **texts)
        return (("user", text),), GRADES
    return (), ""


def _said(write: Callable[..., Any], *texts: Any) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((one["role"], one["content"]) for one in write(*texts))
    except Exception as error:
        raise JvidpruneError(_unlike(_folder() / _CHAT, reason(error))) from error


def _folder() -> Path:
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise JvidpruneError(
            "lmms-eval's words of judges are read from its files: pip install 'jvidprune[lmms-eval]', or without its "
            "dependencies, pip install --no-deps lmms-eval."
        )
    return Path(next(iter(spec.submodule_search_locations)))


@functools.lru_cache(4)
def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise JvidpruneError(_unlike(path, reason(error))) from error


def _unlike(path: Path, why: str) -> str:
    return f"{path} holds no words of a judge as lmms-eval 0.7.3 has them: {why.rstrip('.')}."


@functools.lru_cache(4)
def _function(path: Path, name: str) -> Callable[..., Any]:
    """The part of a function that writes `messages`, which then returns them instead of sending them."""
    made = next((one for one in _parsed(path).body if isinstance(one, ast.FunctionDef) and one.name == name), None)
    if made is None:
        raise JvidpruneError(_unlike(path, f"there is no {name}"))
    writing = [one for one in made.body if not isinstance(one, ast.Global)]
    sending = next((i for i, one in enumerate(writing) if _assigns(one, "payload")), None)
    if sending is None:
        raise JvidpruneError(_unlike(path, f"{name} makes no payload"))
    short = copy.deepcopy(made)
    short.body = [*writing[:sending], ast.Return(ast.Name("messages", ast.Load()))]
    short.decorator_list, short.returns = [], None
    for argument in short.args.args:
        argument.annotation = None
    names: dict[str, Any] = {"__builtins__": {}}
    exec(compile(ast.fix_missing_locations(ast.Module([short], [])), str(path), "exec"), names)
    return names[name]


def _text(path: Path, name: str) -> str:
    found = next((one for one in _parsed(path).body if _assigns(one, name)), None)
    try:
        assert isinstance(found, ast.Assign)
        return str(ast.literal_eval(found.value))
    except (AssertionError, ValueError) as error:
        raise JvidpruneError(_unlike(path, f"there is no text {name}")) from error


def _assigns(one: ast.stmt, name: str) -> bool:
    return isinstance(one, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in one.targets)
