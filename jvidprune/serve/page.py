"""The page: video, question and methods on the left, answers and frames on the right."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jvidprune.errors import JvidpruneError
from jvidprune.serve.cards import CSS, cards, error_banner, figures, head, legend, note
from jvidprune.serve.compare import LONGEST_QUESTION, Comparison, SideBySide
from jvidprune.serve.examples import PageExample
from jvidprune.serve.uploads import Uploads

DEFAULT_METHODS = ("none", "flashvid", "fastvid", "random")
"""Chosen when the page opens, as far as the model has their evidence."""

RATIO = 0.15
KEPT_SECONDS = 1800
"""How long the frames of a comparison are there to look at."""

_STYLE = (
    CSS
    + """
.gradio-container { max-width: 1480px !important; margin: 0 auto !important }
#jv-head h1 { font-size: 26px; font-weight: 650; margin: 0; letter-spacing: -.01em }
#jv-head p { color: var(--jv-soft); margin: 2px 0 0; font-size: 15px }
footer { display: none !important }
#jv-video button[aria-label="Trim video"], #jv-video button[aria-label*="rim"] { display: none }
"""
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_EMPTY = "Choose a video, type a question, and ask: every chosen method answers it from the tokens it keeps."
_GONE = "These frames are kept for half an hour: ask again to see them."


def theme() -> Any:
    """Plain, in the fonts that are there: nothing is fetched."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="zinc",
        font=[gr.themes.Font(name) for name in _FONTS],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
        radius_size="md",
    )


def style() -> str:
    """The page's own style sheet."""
    return _STYLE


class _Asked(NamedTuple):
    """Components that a question is asked with."""

    video: Any
    question: Any
    methods: Any
    ratio: Any
    button: Any


class _Seen(NamedTuple):
    """Components that answers are shown in, in the order in which `ask` gives them."""

    answers: Any
    legend: Any
    slider: Any
    frames: Any
    record: Any


def _question_column(titles: Mapping[str, str], examples: Sequence[PageExample]) -> _Asked:
    import gradio as gr

    video = gr.Video(label="Video", sources=["upload"], height=300, elem_id="jv-video", buttons=[])
    question = gr.Textbox(label="Question", lines=3, max_lines=6, max_length=LONGEST_QUESTION, elem_id="jv-question")
    methods = gr.Dropdown(
        [(title, name) for name, title in titles.items()],
        value=[name for name in DEFAULT_METHODS if name in titles],
        multiselect=True,
        label="Methods",
        allow_custom_value=True,
        info="a name, or typed with settings: flashvid:alpha=0.5",
        elem_id="jv-methods",
    )
    ratio = gr.Slider(0.02, 1.0, value=RATIO, step=0.01, label="Retention ratio", elem_id="jv-ratio")
    button = gr.Button("Ask", variant="primary", elem_id="jv-ask")
    truth = gr.Textbox(label="Right answer", visible=False)
    if examples:
        gr.Examples(
            [[str(one.path), one.prompt, one.answer] for one in examples],
            inputs=[video, question, truth],
            label="Generated clips, and the right answer",
            elem_id="jv-examples",
            api_visibility="private",
        )
    return _Asked(video, question, methods, ratio, button)


def _answer_column() -> _Seen:
    import gradio as gr

    answers = gr.HTML(note(_EMPTY), elem_id="jv-answers")
    slider = gr.Slider(1, 2, value=1, step=1, label="Frame", visible=False, elem_id="jv-frame")
    frames = gr.HTML("", elem_id="jv-frames")
    legend = gr.HTML("", elem_id="jv-legend")
    with gr.Accordion("The same as JSON", open=False):
        record = gr.JSON(label="record", show_label=False, elem_id="jv-record")
    return _Seen(answers, legend, slider, frames, record)


def build_page(comparer: SideBySide, examples: Sequence[PageExample], *, uploads: Uploads, subtitle: str) -> Any:
    """The page as gradio Blocks.

    Args:
      comparer: the model.
      examples: clips to try.
      uploads: where videos are.
      subtitle: which model reads the videos.
    """
    import gradio as gr

    reporter = gr.Progress()

    def ask(
        video: str | None, question: str, methods: list[str], ratio: float, progress: Any = reporter
    ) -> tuple[Any, ...]:
        """Answers one question about a video with every chosen method."""
        try:
            if video:
                uploads.used(video)
            found = comparer.compare(
                video, question, methods or [], ratio, lambda share, text: progress(share, desc=text)
            )
        except Exception as error:
            if not isinstance(error, JvidpruneError):
                traceback.print_exc()
                error = f"this went wrong inside jvidprune ({type(error).__name__}); its console says more."
            return error_banner(str(error)), gr.skip(), gr.update(visible=False), "", {"error": str(error)}, None
        last = len(found.frames)
        slider = gr.update(minimum=1, maximum=max(2, last), value=1, visible=last > 1)
        return cards(found), legend(), slider, figures(found, 0), found.record(), found

    def show(found: Comparison | None, frame: float) -> str:
        """The chosen frame with the tokens of every method."""
        return note(_GONE) if found is None else figures(found, min(max(round(frame), 1), len(found.frames)) - 1)

    with gr.Blocks(title="jvidprune", analytics_enabled=False) as page:
        gr.HTML(head(subtitle), elem_id="jv-head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                asked = _question_column(comparer.methods(), examples)
            with gr.Column(scale=8, min_width=480):
                seen = _answer_column()
        state = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.on(
            [asked.button.click, asked.question.submit],
            ask,
            inputs=[asked.video, asked.question, asked.methods, asked.ratio],
            outputs=[*seen, state],
            api_name="ask",
            concurrency_limit=1,
            show_progress="full",
            show_progress_on=seen.answers,
        )
        seen.slider.change(
            show,
            [state, seen.slider],
            seen.frames,
            api_name="show",
            show_progress="hidden",
            trigger_mode="always_last",
        )
    page.queue(max_size=16)
    return page
