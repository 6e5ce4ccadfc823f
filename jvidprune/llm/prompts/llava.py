"""Prompts as text before and after the video, one template a name."""

import dataclasses

from jvidprune.errors import JvidpruneError


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


TEMPLATES: dict[str, PromptTemplate] = {
    # Conversation template "qwen_1_5", used for all published benchmark numbers of the LLaVA models.
    "qwen_1_5": PromptTemplate(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\n{question}<|im_end|>\n<|im_start|>assistant\n",
    ),
    # Chat templates of the Qwen-VL families, without the vision markers, which stand around each video block.
    "qwen2_5_vl": PromptTemplate(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "{question}<|im_end|>\n<|im_start|>assistant\n",
        between="",
    ),
    "qwen3_vl": PromptTemplate("<|im_start|>user\n", "{question}<|im_end|>\n<|im_start|>assistant\n", between=""),
    # The video stands before the first turn.
    "molmo2": PromptTemplate("", "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"),
    # Chat template shipped with the llava-hf checkpoints: a space after the role, no system turn.
    "llava_hf": PromptTemplate("<|im_start|>user ", "\n{question}<|im_end|><|im_start|>assistant\n", "\n"),
}


def template(name: str) -> PromptTemplate:
    """A template by name.

    Raises:
      JvidpruneError: unknown name.
    """
    if name not in TEMPLATES:
        raise JvidpruneError(f"unknown prompt template {name!r}; known: {', '.join(TEMPLATES)}, chat.")
    return TEMPLATES[name]
