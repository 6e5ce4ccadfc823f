"""Draws the two pictures of the README anew, from the embedded model and from experiments/retention_curves.md.

python docs/pictures.py
"""

import re
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from jvidprune.llm.stages import cache_folder
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.clips import default_clip
from jvidprune.reducers import registry
from jvidprune.reducers.run import reduce
from jvidprune.viz.decision import Decision
from jvidprune.viz.overlay import contact_sheet

ROOT = Path(__file__).parents[1]
METHODS = ("visionzip", "fastvid", "flashvid", "aot")
SHOWN = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Which frames, as shares of the clip."""
LINES = {"AOT": "#332288", "FlashVID": "#117733", "FastVID": "#4499bb", "VisionZip": "#cc6677", "Random": "#777777"}


def four_methods() -> Image.Image:
    """Four frames of the generated clip under four methods at 10 %."""
    llm = VideoLLM.load()
    clip = llm.sample(default_clip(cache_folder()))
    decisions = []
    for name in METHODS:
        reducer = llm.reducer(name)
        video = llm.encode(clip, reducer=reducer).tokens
        shape = {"frames": video.features.shape[0], "grid": video.grid}
        reduced = reduce(reducer, video, 0.1, diagnostics=True)
        decisions.append(Decision.from_reduced(reduced, method=registry.title(name), ratio=0.1, **shape))
    labels = [f"{time:.1f} s" for time in clip.timestamps]
    only = [round(share * len(labels)) for share in SHOWN]
    sheet = contact_sheet(clip.frames, decisions, labels, width=190, columns=len(labels), only=only)
    return Image.fromarray(sheet).quantize(256, kmeans=4, dither=Image.Dither.NONE)


def retention() -> Figure:
    """Accuracy of some methods over the retention ratio, as the table of the experiment has it."""
    text = (ROOT / "experiments" / "retention_curves.md").read_text(encoding="utf8")
    table = re.search(r"^\| method \|.*\n\| --- .*\n((?:\|.*\n)+)", text, flags=re.M)
    assert table is not None
    rows = {
        cells[0].removesuffix(" (control)"): cells[1:]
        for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in table[1].splitlines())
    }
    ratios = [25, 20, 15, 10, 5]
    figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    full = float(rows["unpruned"][0].split()[0])
    axes.axhline(full, color="#999999", lw=1, ls=":")
    axes.text(5, full + 0.8, "all tokens", color="#777777", fontsize=9, ha="center")
    for name, colour in LINES.items():
        values = [float(cell.split()[0]) for cell in rows[name]]
        axes.plot(ratios, values, color=colour, marker="o", ms=3.5, lw=1.8, ls="--" if name == "Random" else "-")
        axes.annotate(
            name, (5, values[-1]), xytext=(6, 0), textcoords="offset points", va="center", color=colour, fontsize=9
        )
    axes.set_xlim(26, 1.5)
    axes.set_xticks(ratios, [f"{ratio} %" for ratio in ratios])
    axes.set_xlabel("retention ratio")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    return figure


if __name__ == "__main__":
    folder = Path(__file__).parent / "images"
    four_methods().save(folder / "four-methods.png", optimize=True)
    retention().savefig(folder / "retention.png")
    print({path.name: path.stat().st_size for path in sorted(folder.iterdir())})
