"""Tables and sections on the methods for README and docs, made from what each reducer says of itself.

python -m jvidprune.reducers.table README.md docs/methods.md    rewrites them in place, in a checkout.

Two columns are read off the tests: a method has golden files if its folder of them is there, and gradients if the test
that all methods have to pass takes them.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.fields import settings_of
from jvidprune.ops.transport import Transport
from jvidprune.reducers import registry
from jvidprune.reducers.protocol import of_frames
from jvidprune.tokens import Layout

_SHORT, _WHOLE, _SECTIONS = "<!-- methods-short -->", "<!-- methods-table -->", "<!-- methods-sections -->"
_FILED = {"visionzip_qwen": "stop", "random": "controls"} | dict.fromkeys(
    ("pool_space", "pool_time", "pool_spacetime", "sample_space", "sample_spacetime"), "grids"
)
"""Methods whose golden files and tests stand under another name."""

_CONTROLS = {"inner_random"}
"""Controls that a paper describes."""

_RATIOS = {
    "none": "it is checked, and not used.",
    "visionzip": "a share of each frame, by the published table of counts on SigLIP, else rounded down.",
    "divprune": "a share of the video; the number for each frame follows from its tokens.",
    "scissor": "an upper bound of the share of the video; a similarity threshold is searched for it.",
    "tome": "a share of each frame.",
    "cdpruner": "a share of each frame.",
    "zspaprune": "a share of the video, most of it by relevance; the number for each frame follows from its tokens.",
    "vcast": "a share of the video; frames get more or fewer.",
    "evs": "a share of the video; the first frame stays whole.",
    "vidcom2": "a share of the video on average; frames get more or fewer.",
    "holov": "an upper bound of the share of each frame.",
    "dycoke": "a nominal share of the video; every fourth frame stays whole, so that small shares are refused.",
    "random": "a share of the video.",
    "uniform": "a share of the video.",
    "frame_drop": "a share of the frames.",
    "pool_space": "a share of each frame; the smaller grid holds no more than that.",
    "pool_time": "a share of the frames.",
    "pool_spacetime": "a share of the video, split between frames and grid.",
    "sample_space": "a share of each frame; the smaller grid holds no more than that.",
    "sample_time": "a share of the frames.",
    "sample_spacetime": "a share of the video, split between frames and grid.",
    "sample_random_cell": "a share of each frame; the smaller grid holds no more than that.",
    "downscale": "a share of each frame; the smaller grid holds no more than that.",
    "fewer_frames": "a share of the frames.",
    "inner_random": "the share that stays after the cut inside the language model; all tokens enter the model.",
    "fastv": "the share that stays after the cut inside the language model; all tokens enter the model.",
    "dart": "the share that stays after the cut inside the language model; all tokens enter the model.",
    "pyramiddrop": "the mean share over the layers of the language model; all tokens enter it.",
    "information_horizon": "the mean share over the layers of the language model.",
    "sparsevlm": "the mean share of tokens that leave a layer, by the nearest published list; all tokens enter it.",
    "framefusion": "the mean share over 28 layers of the language model; all tokens enter it.",
    "swiftvlm": "the mean share over the layers of the language model, merged tokens included; all tokens enter it.",
    "dstp": "that of the host, whose count is kept at every step of the answer.",
    "mod": "the mean share over the layers of the language model; all tokens enter it and leave it.",
    "videollm_mod": "the mean share over the layers of the language model; all tokens enter it and leave it.",
    "attention_topk": "a share of the video.",
    "norm_topk": "a share of the video.",
    "flashvid": "the mean share over the layers of the language model; more enter it, fewer stay after the cut.",
    "fastvid": "a share of each frame, rounded down.",
    "holitom": "a share of the video, reached by merging over time and then by pruning what is left.",
    "prunevid": "about a share of each segment; small sets of tokens keep more.",
    "ottvid": "a share of the video, reached by selection in frames and merging between them.",
    "aot": "a share of the video, reached through a number of anchors a frame that is found for it.",
    "stop": "that of the method that is wrapped.",
    "qwen_norm": "that of the method whose name the baseline has.",
    "visionzip_qwen": "a share of the video.",
    "sequential": "a share of the video, split between the two methods.",
    "stts": "a share of the windows of the video.",
    "covipal": "a share of the video, or of the tokens that reach the layer after the module.",
}
"""How the ratio of each method is meant."""

_RECONSTRUCTED = (
    "a reconstruction: no code of it is public, and it follows what is said of the method. Nothing here was compared "
    "with its authors' program."
)

_EXAMPLE = Layout(32, (14, 14), (27, 27))
"""LLaVA-OneVision's video of 32 frames, which counts are given for."""


def short() -> str:
    """One row a method: name, paper, one line."""
    rows = [["method", "paper", "what it does"], ["---"] * 3]
    for name in (*registry.names(), *registry.framed(), *registry.learned()):
        info = registry.info(name)
        summary = info.summary[:1].upper() + info.summary[1:].rstrip(".")
        rows.append([f"[`{name}`](docs/methods.md#{name}) {info.label}", _paper(info.paper), summary])
    return _lines(rows)


def whole(tests: Path) -> str:
    """One row a method: paper, evidence, what its output is, gradients, parity.

    Args:
      tests: folder of the tests, which two columns are read off.
    """
    head = ["method", "paper", "needs", "merges", "nested", "exact count", "gradients", "parity"]
    rows = [head, ["---"] * len(head)]
    for name in (*registry.names(), *registry.framed(), *registry.learned()):
        info, reducer = registry.info(name), registry.get(name)
        yes = ["yes" if flag else "no" for flag in (info.merges, info.nested, info.exact)]
        gradients = "–"
        if _takes_gradients(tests) and name not in registry.framed():
            gradients = "kept and merged tokens" if info.merges else "kept tokens"
        control = info.paper == "-" or name in _CONTROLS
        parity = "golden files" if _has_golden(name, tests) else "control" if control else "no golden files"
        if info.provenance == "reconstruction":
            parity = f"reconstruction, {parity}"
        rows.append([f"[`{name}`](#{name})", _paper(info.paper), _needs(reducer.needs), *yes, gradients, parity])
    return _lines(rows)


def sections() -> str:
    """A section a method: what it does and needs, how it counts, quirks and their options."""
    parts = []
    for name in (*registry.names(), *registry.framed(), *registry.combinators(), *registry.learned()):
        info, reducer = registry.info(name), registry.get(name)
        summary = info.summary[:1].upper() + info.summary[1:].rstrip(".")
        code = type(reducer).__module__.replace(".", "/")
        facts = [
            f"- **Code:** [{code.removeprefix('jvidprune/reducers/')}.py](../{code}.py).",
            f"- **Paper:** {_paper(info.paper) if info.paper != '-' else 'none, a control'}.",
            *[f"- **Provenance:** {_RECONSTRUCTED}"] * (info.provenance == "reconstruction"),
            f"- **Needs:** {_needed(reducer)}.",
            f"- **Output:** {_output(reducer)}.",
            f"- **Ratio:** {_RATIOS[name]}{_example(name)}",
            f"- **Count:** {_counted(info.exact)} {_nested(info.nested)}",
        ]
        options = ", ".join(f"`{field.name}={_value(field)}`" for field in _options(reducer))
        facts += [f"- **Options:** {options}."] * bool(options)
        if info.quirks:
            facts.append("- **Quirks that the default keeps:**")
            facts += [f"    - {quirk[:1].upper()}{quirk[1:]}." for quirk in info.quirks]
        parts.append("\n".join([f"### {name}", "", f"**{info.label}.** {summary}.", "", *facts]))
    return "\n\n".join(parts)


def _example(name: str) -> str:
    """How many rows a tenth of a usual video becomes at most."""
    reducer = registry.get(name, "llava_onevision")
    try:
        rows = reducer.capacity(_EXAMPLE, 0.1)
    except JvidpruneError:
        return ""
    most = "" if registry.info(name).exact else "at most "
    return f" At 0.1 a video of {_EXAMPLE.frames} × {_EXAMPLE.tokens} tokens becomes {most}{rows:,}."


def _options(reducer: Any) -> list[dataclasses.Field]:
    """Settings of a method beside those that all methods have."""
    known = settings_of(type(reducer))
    return [field for field in dataclasses.fields(reducer) if field.name in known and field.name != "positions"]


def _value(field: dataclasses.Field) -> str:
    """A default, parts of several settings by their names alone, a transport by its parts."""
    default = field.default
    if isinstance(default, Transport):
        parts = (default.cost, default.marginals, default.solver)
        return f"Transport({', '.join(type(part).__name__ for part in parts)}, {default.projection!r})"
    return type(default).__name__ if dataclasses.is_dataclass(default) else repr(default)


def _counted(exact: bool) -> str:
    known = "The number of output tokens is known before any data is seen."
    return known if exact else "The number of output tokens depends on the video; the capacity is an upper bound."


def _nested(nested: bool) -> str:
    kept = "What a smaller budget keeps lies inside what a larger one keeps."
    return kept if nested else "A smaller budget may keep tokens that a larger one does not."


def _paper(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"\d{4}\.\d{5}", paper) else "–"


def _needed(reducer: Any) -> str:
    if of_frames(reducer):
        return "the frames, and a model that encodes them"
    return _needs(reducer.needs) if reducer.needs else "the features alone"


def _output(reducer: Any) -> str:
    if of_frames(reducer):
        return "all tokens of these frames"
    return "kept tokens and weighted sums of others" if reducer.info.merges else "kept tokens as they are"


def _needs(needs: frozenset[str]) -> str:
    return ", ".join(f"`{evidence}`" for evidence in sorted(needs)) or "–"


def _has_golden(name: str, tests: Path) -> bool:
    folder = tests / "golden" / _FILED.get(name, name)
    return folder.is_dir() and any(folder.rglob("*.npz"))


def _takes_gradients(tests: Path) -> bool:
    """Whether the test that every method of the registry has to pass takes gradients through it."""
    common = tests / "reducers" / "test_common.py"
    return "jax.grad(" in common.read_text(encoding="utf8")


def _lines(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rewrite(path: Path, mark: str, made: str) -> None:
    """Replaces what stands between a mark and the next heading, or the end; files without the mark stay as they are."""
    text = path.read_text(encoding="utf8")
    if mark not in text:
        return
    before, after = text.split(mark)
    until = r"(?m)^#{1,2} " if made.startswith("#") else r"(?m)^(?!\|)\S"
    found = re.search(until, after)
    rest = after[found.start() :] if found else ""
    path.write_text(f"{before}{mark}\n{made}\n" + (f"\n{rest}" if rest else ""), encoding="utf8")


if __name__ == "__main__":
    here = Path(__file__).parents[2] / "tests"
    for name in sys.argv[1:]:
        for mark, made in ((_SHORT, short()), (_WHOLE, whole(here)), (_SECTIONS, sections())):
            rewrite(Path(name), mark, made)
