"""Tokenizers of checkpoint folders: transformers where it is configured, plain tokenizers otherwise."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.models.checkpoint import read_json

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Ends of sequence of the Qwen family."""


class Tokenizer(Protocol):
    """Text to ids and back; special tokens in the text become their ids, nothing is added around it."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; negative ids are skipped."""
        ...

    def token_id(self, token: str) -> int | None:
        """Id of one token, None if there is no such token."""
        ...


@contextlib.contextmanager
def _readable(sentence: str) -> Iterator[None]:
    """Whatever the block raises ends in one sentence, panics of native code included."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise JvidpruneError(f"{sentence}: {reason(error)}.") from error


class _Fast:
    """tokenizer.json read by the tokenizers library."""

    def __init__(self, path: Path):
        import tokenizers

        with _readable(f"{path} is no readable tokenizer"):
            self._inner = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode([int(i) for i in ids if i >= 0], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)


class _Auto:
    """AutoTokenizer of transformers, for folders with a tokenizer_config.json."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        with _readable(f"the tokenizer in {folder} cannot be loaded"):
            self._inner: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._vocab: dict[str, int] = self._inner.get_vocab()

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode([int(i) for i in ids if i >= 0], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._vocab.get(token)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
      JvidpruneError: the folder has none, or it cannot be read.
    """
    folder = Path(folder)
    if (folder / "tokenizer_config.json").exists():
        return _Auto(folder)
    if (folder / "tokenizer.json").exists():
        return _Fast(folder / "tokenizer.json")
    raise JvidpruneError(f"{folder} has neither tokenizer_config.json nor tokenizer.json.")


def beginning(folder: str | Path) -> str:
    """The token that begins a text, or the one that ends it where a tokenizer has none; "" where it names neither.

    As tokenizer_config.json or special_tokens_map.json of the folder say.
    """
    for key in ("bos_token", "eos_token"):
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            path = Path(folder) / name
            found = read_json(path).get(key) if path.exists() else None
            text = found.get("content") if isinstance(found, dict) else found
            if isinstance(text, str) and text:
                return text
    return ""


def end_ids(folder: str | Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer: those of generation_config.json and of `END_TOKENS`, increasing.

    Raises:
      JvidpruneError: a generation_config.json that is no JSON object, or lists something else than ids.
    """
    found = {tokenizer.token_id(token) for token in END_TOKENS} - {None}
    path = Path(folder) / "generation_config.json"
    if path.exists():
        listed = read_json(path).get("eos_token_id")
        ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in ids):
            raise JvidpruneError(f"{path} gives eos_token_id {quoted(listed)}; it must be an id or a list of ids.")
        found |= set(ids)
    return tuple(sorted(int(i) for i in found if i is not None))
