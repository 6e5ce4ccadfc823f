"""Prompts as text before and after a video; each family holds its own, `llm.prompts.templates` finds them by name."""

import dataclasses

ASSISTANT = "<|im_start|>assistant\n"
"""What stands before an answer, in the prompts of all families."""

_USER, _SYSTEM = "<|im_start|>user", "<|im_start|>system\n"


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """Text around the visual tokens of one question; `{question}` is replaced.

    Turns are those of ChatML, so that what a template says of one question tells how several are written.

    Attributes:
      before: text in front of the video.
      after: text behind it, with the question.
      between: text between two videos; a space is what lmms-eval puts between the placeholders of a LLaVA model.
    """

    before: str
    after: str
    between: str = " "

    def parts(self, question: str) -> tuple[str, str]:
        """(text before, text after) for one question."""
        return self.before, self.after.replace("{question}", question)

    def texts(self, question: str, videos: int = 1) -> list[str]:
        """The texts around and between so many videos."""
        before, after = self.parts(question)
        return [before, *[self.between] * (videos - 1), after]

    @property
    def visual_first(self) -> bool:
        """Whether videos stand before the user's turn opens (Molmo2)."""
        return _USER not in self.before

    @property
    def user(self) -> str:
        """What opens a user's turn, as in "<|im_start|>user\\n"."""
        return self.lead_in[0]

    @property
    def lead(self) -> str:
        """What stands between a video and the question in a user's turn."""
        return self.lead_in[1]

    @property
    def lead_in(self) -> tuple[str, str]:
        """What opens a user's turn, and what stands between a video and the question in it."""
        behind = self.after.partition("{question}")[0]
        if self.visual_first:
            return behind, ""
        return self.before[self.before.rindex(_USER) :], behind

    @property
    def closing(self) -> str:
        """What ends a turn."""
        return self.after.partition("{question}")[2].partition(ASSISTANT)[0]

    @property
    def answering(self) -> str:
        """What stands before an answer: the assistant's turn opens, and thoughts close where there are none."""
        return self.after.partition("{question}")[2].removeprefix(self.closing)

    @property
    def opening(self) -> str:
        """What stands before the first user's turn: the template's own system turn, or nothing."""
        return "" if self.visual_first else self.before[: self.before.rindex(_USER)]

    def told(self, system: str) -> str:
        """A system turn."""
        return f"{_SYSTEM}{system}{self.closing}"
