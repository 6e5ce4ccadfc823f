"""FLOP accounting: what every stage of an answer costs, counted from a config before anything runs.

`count` takes the sizes of one prompt; `count_ratio` derives them from a reducer and a ratio. See
`costs.flops_model` for what is counted, the methods' own `flops` for the reduction, `costs.flops_papers` for the second
column, which repeats the arithmetic of the papers' tables.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from jvidprune.costs.flops_model import Segment, decode, prefill, segments, vision_terms
from jvidprune.costs.flops_papers import CONVENTIONS, paper_prefill
from jvidprune.cuts.attended import check_attended
from jvidprune.errors import JvidpruneError
from jvidprune.llm.prompt_cuts import newlines_compete
from jvidprune.llm.prompts.registry import builder_of
from jvidprune.models import family as families
from jvidprune.models.settings import FamilySettings
from jvidprune.ops.newline import NewlineKind, newline_count
from jvidprune.reducers.counting import Terms, TokenWidth
from jvidprune.reducers.protocol import Reducer, check_ratio, inner_stages, prompt_rules, title_of, with_defaults
from jvidprune.tokens import Layout

if TYPE_CHECKING:
    from rich.table import Table

MATCHES: dict[str, tuple[str, ...]] = {
    "encode": ("tower", "projector"),
    "reduce": ("reducer",),
    "prefill": ("prefill",),
    "generate": ("decode",),
}
"""Timed stages of an answer -> stages counted here."""


@dataclasses.dataclass(frozen=True)
class StageFlops:
    """One stage, or one stretch of layers of the prefill.

    Attributes:
      name: tower, projector, reducer, prefill or decode.
      part: which layers and how many tokens, empty for a stage that is whole.
      terms: FLOPs by what they are spent on.
      papers: operations by convention of `CONVENTIONS`; prefill only.
    """

    name: str
    part: str
    terms: Terms
    papers: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


@dataclasses.dataclass(frozen=True)
class FlopReport:
    """All stages of one answer.

    Attributes:
      model: family, or the name of a published checkpoint.
      method: title of the reducer.
      visual: visual tokens of the video.
      kept: of those, what the reducer hands on; a bound where `exact` is False.
      prompt: tokens of the prompt.
      exact: whether `kept` is known.
      stages: in the order they run.
    """

    model: str
    method: str
    visual: int
    kept: int
    prompt: int
    exact: bool
    stages: tuple[StageFlops, ...]

    @property
    def total(self) -> float:
        """FLOPs of all stages."""
        return sum(stage.flops for stage in self.stages)

    def of(self, *names: str) -> float:
        """FLOPs of the stages with these names."""
        return sum(stage.flops for stage in self.stages if stage.name in names)

    def paper(self, convention: str = "fastv") -> float:
        """Prefill as the papers count it; see `costs.flops_papers`."""
        return sum(stage.papers.get(convention, 0.0) for stage in self.stages)

    def timed(self, stage: str) -> float | None:
        """FLOPs of a timed stage of an `Answer`; None for one that is not counted (decoding the file)."""
        return self.of(*MATCHES[stage]) if stage in MATCHES else None

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [dataclasses.asdict(stage) | {"flops": stage.flops} for stage in self.stages]
        papers = {name: self.paper(name) for name in CONVENTIONS}
        return dataclasses.asdict(self) | {"stages": stages, "total": self.total, "papers": papers}

    def __rich__(self) -> "Table":
        """A table of TFLOPs with a row a stage, its terms below it, and a column a convention."""
        from rich import box
        from rich.table import Table

        amount = f"{'' if self.exact else 'at most '}{self.kept:,} of {self.visual:,} visual tokens"
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"{self.model}, {self.method}: {amount}, prompt of {self.prompt:,}",
            caption="papers count the prefill's visual tokens alone, a product with its sum as one",
        )
        for name, justify in (("stage", "left"), ("", "left"), ("TFLOP", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for name in CONVENTIONS:
            table.add_column(f"as {name}", justify="right", no_wrap=True)
        for stage in self.stages:
            papers = [tera(stage.papers[name]) if name in stage.papers else "" for name in CONVENTIONS]
            table.add_row(stage.name, stage.part, tera(stage.flops), *papers)
            for term, flops in filter(lambda item: item[1], stage.terms.items()):
                table.add_row("", f"[dim]{term}[/dim]", f"[dim]{tera(flops)}[/dim]")
        table.add_section()
        table.add_row("all", "", tera(self.total), *(tera(self.paper(name)) for name in CONVENTIONS), style="bold")
        return table


def tera(flops: float) -> str:
    """TFLOPs with three significant digits, no exponents."""
    value = flops / 1e12
    digits = next((d for d in range(6) if value >= 10.0 ** (2 - d)), 6)
    return f"{value:,.{digits}f}" if value else "0"


def count(
    config: Any,
    layout: Layout,
    *,
    kept: int,
    prompt: int,
    reducer: Reducer,
    ratio: float = 1.0,
    new_tokens: int = 1,
    newlines: int = 0,
    causal: bool = True,
    exact: bool = True,
    name: str | None = None,
) -> FlopReport:
    """Every stage of one answer from sizes that are known.

    Args:
      config: of a family of `jvidprune.models`.
      layout: of the video; frames are grid frames for the Qwen families.
      kept: visual tokens that enter the language model, newlines not counted.
      prompt: all tokens that do.
      reducer: whose work and cuts inside the model are counted.
      ratio: what it was asked for.
      new_tokens: generated tokens, the end of sequence included.
      newlines: newline embeddings among the prompt's tokens.
      causal: see `flops_model.prefill`.
      exact: whether `kept` is known or a bound.
      name: of the model, by default its family.

    Raises:
      JvidpruneError: a prompt shorter than its visual tokens.
    """
    if prompt < kept + newlines:
        raise JvidpruneError(f"a prompt of {prompt} tokens cannot hold {kept} visual tokens and {newlines} newlines.")
    text, vision = config.text, config.vision
    seen = with_defaults(reducer).seen(layout, ratio)
    tower, after = vision_terms(config, seen)
    parts = prompt_segments(config, reducer, ratio, kept=kept, newlines=newlines, prompt=prompt)
    # The papers' n leaves newlines out.
    plain = segments(inner_stages(reducer, ratio), text.layers, tokens=kept, visual=kept)
    papers = {convention: paper_prefill(text, plain, convention) for convention in CONVENTIONS}
    width = TokenWidth(text.width, keys=vision.width // vision.heads, levels=len(getattr(vision, "taps", ())))
    counted = [
        StageFlops("tower", "", tower),
        StageFlops("projector", "", after),
        StageFlops("reducer", "", dict(with_defaults(reducer).flops(seen, width, ratio))),
    ]
    reads = prefill(text, parts, causal=causal, mutual=families.get(config.family).bidirectional)
    for number, (part, terms) in enumerate(zip(parts, reads, strict=True)):
        numbers = {convention: values[number] for convention, values in papers.items()}
        counted.append(StageFlops("prefill", _stretch(part), terms, numbers))
    answer = "1 token" if new_tokens == 1 else f"{new_tokens:,} tokens"
    counted.append(StageFlops("decode", answer, decode(text, parts, new_tokens)))
    return FlopReport(name or config.family, title_of(reducer), layout.total, kept, prompt, exact, tuple(counted))


def count_ratio(
    config: Any,
    layout: Layout,
    *,
    reducer: Reducer,
    ratio: float,
    kept: int | None = None,
    text: int = 57,
    new_tokens: int = 1,
    name: str | None = None,
) -> FlopReport:
    """Every stage of one answer from a ratio alone: counts that the video decides are replaced by their bound.

    Args:
      config: of a family.
      layout: of the video.
      reducer: the method.
      ratio: retention ratio.
      kept: tokens that were kept, where that is known.
      text: text tokens of the prompt; the stamps and markers that a family writes are added.
      new_tokens: generated tokens.
      name: of the model.

    Raises:
      JvidpruneError: an impossible ratio or count.
    """
    exact = kept is not None or with_defaults(reducer).info.exact
    kept, newlines, prompt = prompt_sizes(config, layout, reducer=reducer, ratio=ratio, kept=kept, text=text)
    return count(
        config,
        layout,
        reducer=reducer,
        ratio=ratio,
        exact=exact,
        name=name,
        kept=kept,
        prompt=prompt,
        newlines=newlines,
        new_tokens=new_tokens,
    )


def prompt_sizes(
    config: Any, layout: Layout, *, reducer: Reducer, ratio: float, kept: int | None = None, text: int = 57
) -> tuple[int, int, int]:
    """Visual tokens kept, newline embeddings, and all tokens of a prompt; see `count_ratio`.

    Raises:
      JvidpruneError: an impossible ratio or count.
    """
    bound = reducer.capacity(layout, check_ratio(ratio))
    kept = bound if kept is None else kept
    if not 0 <= kept <= max(bound, layout.total):
        raise JvidpruneError(f"kept must lie in [0, {max(bound, layout.total)}], the video's tokens, got {kept}.")
    seen = with_defaults(reducer).seen(layout, ratio)
    newlines = newline_tokens(config, seen, reducer)
    return kept, newlines, kept + newlines + text + marker_tokens(config, seen, reducer)


def prompt_segments(
    config: Any, reducer: Reducer, ratio: float, *, kept: int, newlines: int, prompt: int
) -> tuple[Segment, ...]:
    """A prompt through the decoder: stretches of layers with as many tokens as the cuts inside the model leave.

    Args:
      config: of a family.
      reducer: with its cuts.
      ratio: what it was asked for.
      kept: visual tokens that enter, newlines not counted.
      newlines: newline embeddings, which are cut like visual tokens where the references do so.
      prompt: all tokens.

    Raises:
      JvidpruneError: cuts that the model cannot have, see `cuts.attended`.
    """
    stages, layers = inner_stages(reducer, ratio), config.text.layers
    check_attended(stages, layers, config.text.attending)
    acting = [stage for stage in stages if stage.boundary < layers]
    competing = kept + newlines * newlines_compete(acting, newline_kind(config, reducer))
    return segments(stages, layers, tokens=prompt, visual=competing)


def newline_kind(config: Any, reducer: Reducer, settings: FamilySettings | None = None) -> NewlineKind:
    """Layout of the newline embeddings: what the reducer declares, else the checkpoint's, else the family's.

    Args:
      config: of a family.
      reducer: of the video.
      settings: of the family; by default those of its released code.
    """
    settings = families.get(config.family).settings["released"] if settings is None else settings
    return prompt_rules(reducer).newline_layout(settings.newline_of(config))


def newline_tokens(config: Any, layout: Layout, reducer: Reducer, settings: FamilySettings | None = None) -> int:
    """Newline embeddings of a prompt if every frame and row gets its own; arguments as of `newline_kind`."""
    return newline_count(newline_kind(config, reducer, settings), layout.grid, layout.frames)


def marker_tokens(config: Any, layout: Layout, reducer: Reducer) -> int:
    """Text tokens that the family writes around the tokens of a video, about."""
    settings = families.get(config.family).settings["released"]
    return builder_of(settings).marker_tokens(config, layout, reducer)


def _stretch(part: Segment) -> str:
    layers = f"layer {part.start}" if part.stop == part.start + 1 else f"layers {part.start}-{part.stop - 1}"
    return f"{layers}, {part.tokens:,} tokens"
