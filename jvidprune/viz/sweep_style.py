"""How methods look in the plots of a sweep: a colour-blind safe palette as CSS variables, for light and dark alike."""

import dataclasses

from jvidprune.evals import controls

INK, SOFT, LINE = "#10203a", "#10203b", "#10203c"
"""Placeholders that a plot is drawn with; `themed` turns them into CSS variables."""

# Paul Tol's "muted" scheme (safe for all common kinds of colour blindness), and the same hues lightened for dark pages.
_LIGHT = ("#332288", "#cc6677", "#117733", "#4499bb", "#aa4499", "#999933", "#882255", "#44aa99", "#b8860b")
_DARK = ("#9a8cff", "#ff9aa8", "#5fc47c", "#88ccee", "#e08ad6", "#cccc66", "#e0679f", "#6fd8c6", "#f0c25a")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h")

CONTROLS = (*controls.CONTROLS, "attention_topk", "norm_topk")
"""Methods without a paper; they are drawn in grey behind the others."""


@dataclasses.dataclass(frozen=True)
class SeriesStyle:
    """Placeholder colour, marker and dashes of one method."""

    colour: str
    marker: str
    dashes: str
    control: bool


def series_styles(methods: list[str]) -> dict[str, SeriesStyle]:
    """A style for every method: controls share the soft ink and differ by dashes, the others by colour and marker."""
    styles, grey, bright = {}, 0, 0
    for method in methods:
        if controls.base_name(method) in CONTROLS:
            styles[method] = SeriesStyle(SOFT, ".", ("--", ":", "-.")[grey % 3], True)
            grey += 1
        else:
            turn, i = divmod(bright, len(_LIGHT))
            styles[method] = SeriesStyle(f"#1020{0x50 + i:02x}", _MARKERS[i], ("-", "--", ":")[turn % 3], False)
            bright += 1
    return styles


def css_variables() -> str:
    """The palette as rules for `:root`, dark values under prefers-color-scheme."""
    light = "--ink:#1c1c1a;--soft:#686863;--line:#dddcd6;--panel:#fff;" + _series(_LIGHT)
    dark = "--ink:#ececea;--soft:#a3a39d;--line:#3a3a3f;--panel:#1d1d20;" + _series(_DARK)
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def themed(svg: str) -> str:
    """An SVG drawn with placeholder colours, now in terms of the page's CSS variables."""
    for placeholder, name in ((INK, "ink"), (SOFT, "soft"), (LINE, "line")):
        svg = svg.replace(placeholder, f"var(--{name})")
    for i in range(len(_LIGHT)):
        svg = svg.replace(f"#1020{0x50 + i:02x}", f"var(--s{i})")
    return svg


def css_colour(style: SeriesStyle) -> str:
    """The CSS value of a series' colour."""
    return themed(style.colour)


def _series(colours: tuple[str, ...]) -> str:
    return "".join(f"--s{i}:{colour};" for i, colour in enumerate(colours))
