"""Prompts as text before and after a video; each family holds its own, `llm.prompts.templates` finds them by name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """Text around the visual tokens; `{question}` is replaced.

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
