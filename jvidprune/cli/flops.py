"""`jvidprune flops`: what an answer costs, from a config alone."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from jvidprune.cli.options import OUTPUT, Common, ConventionName, print_json

if TYPE_CHECKING:
    from jvidprune.costs.flops import FlopReport


@dataclasses.dataclass(frozen=True)
class FlopsChoice:
    """Which model, video, method and answer."""

    model: str = "llava-onevision-7b"
    """A published model such as qwen2.5-vl-7b, or a folder with config.json."""
    reducer: str = "flashvid"
    """Method (`jvidprune methods`), with settings as in "flashvid(alpha=0.5)"; "none" keeps all tokens."""
    ratio: float = 0.1
    """Retention ratio in (0, 1]."""
    frames: int | None = None
    """Frames of the video; by default what the family was evaluated with."""
    size: str = "448x448"
    """Frames in pixels, HEIGHTxWIDTH; only the Qwen families read more than one size."""
    kept: int | None = None
    """Visual tokens kept, where they are known; by default the count or bound of the method."""
    text: int = 57
    """Text tokens of the prompt."""
    new_tokens: int = 64
    """Length of the answer."""
    convention: ConventionName | None = None
    """That the video is read in (docs/conventions.md); by default the authors' released code's."""


CHOICE = FlopsChoice()


def flops(*, choice: Annotated[FlopsChoice, OmitArgPrefixes] = CHOICE, out: Common = OUTPUT) -> None:
    """Count what an answer costs, stage by stage, from a model's config alone."""
    report = of_config(choice)
    if out.json:
        print_json(report.record())
    elif out.quiet:
        print(f"{report.total:.0f}")
    else:
        out.console().print(report)


def of_config(choice: FlopsChoice) -> "FlopReport":
    """The breakdown of a published model, or of a folder's config.json; no weights are read.

    Raises:
      JvidpruneError: an unknown model or reducer, or impossible numbers.
    """
    from jvidprune.cli.paper import check_counts, config_named, layout_of, read_size
    from jvidprune.costs.flops import count_ratio
    from jvidprune.llm.conventions import settings_of
    from jvidprune.reducers.registry import for_model

    config = config_named(choice.model)
    frames = settings_of(config.family, choice.convention).frames if choice.frames is None else choice.frames
    check_counts(text=choice.text, new_tokens=choice.new_tokens)
    layout = layout_of(config, frames, read_size(choice.size), choice.convention)
    return count_ratio(
        config,
        layout,
        reducer=for_model(choice.reducer, config),
        ratio=choice.ratio,
        kept=choice.kept,
        text=choice.text,
        new_tokens=choice.new_tokens,
        name=choice.model,
    )
