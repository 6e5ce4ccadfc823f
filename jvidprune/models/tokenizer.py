"""Tokenizers of checkpoint folders: transformers where it is configured, plain tokenizers otherwise."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.models.checkpoint.folder import read_json

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Ends of sequence of the Qwen family."""

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


class Tokenizer(Protocol):
    """Text to ids and back; special tokens in the text become their ids, nothing is added around it.

    Attributes:
      cleans: decoding takes blanks away before punctuation, so that a text's end may change with the next token.
    """

    cleans: bool

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def whole(self, text: str) -> list[int]:
        """Ids of a text with what the tokenizer puts around it, such as its end."""
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


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """transformers neither advises to install PyTorch, which nothing here needs, nor warns of what it guesses."""
    before = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"
    try:
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)
    finally:
        if before is None:
            del os.environ[_ADVICE]
        else:
            os.environ[_ADVICE] = before


class _Fast:
    """tokenizer.json read by the tokenizers library."""

    cleans = False

    def __init__(self, path: Path):
        import tokenizers

        with _readable(f"{path} is no readable tokenizer"):
            self._inner = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def whole(self, text: str) -> list[int]:
        return self._inner.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode([int(i) for i in ids if i >= 0], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)


class _Auto:
    """AutoTokenizer of transformers, for folders with a tokenizer_config.json."""

    def __init__(self, folder: Path):
        with _readable(f"the tokenizer in {folder} cannot be loaded"), silenced():
            from transformers import AutoTokenizer

            self._inner: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._vocab: dict[str, int] = self._inner.get_vocab()
        self.cleans = bool(getattr(self._inner, "clean_up_tokenization_spaces", False))

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False))

    def whole(self, text: str) -> list[int]:
        # A text longer than the model's is cut into segments, of which transformers warns.
        with silenced():
            return list(self._inner.encode(text, truncation=False, padding=False))

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
    whole = (folder / "tokenizer.json").exists()
    if (folder / "tokenizer_config.json").exists():
        try:
            return _Auto(folder)
        except JvidpruneError:
            # Settings of another version of transformers (5 writes classes and token lists that 4 does not know), or of
            # code that is not run: tokenizer.json says everything by itself.
            if not whole:
                raise
    if whole:
        return _Fast(folder / "tokenizer.json")
    raise JvidpruneError(f"{folder} has neither tokenizer_config.json nor tokenizer.json.")


def beginning(folder: str | Path) -> str:
    """The token that begins a text, or the one that ends it where a tokenizer has none; "" where it names neither.

    As tokenizer_config.json or special_tokens_map.json of the folder say.
    """
    return next((text for key in ("bos_token", "eos_token") if (text := _named(folder, key))), "")


def padding_id(folder: str | Path, tokenizer: Tokenizer, usual: int) -> int:
    """Id of the token that fills texts up, as the folder's files name it, else `usual`."""
    found = tokenizer.token_id(_named(folder, "pad_token"))
    return usual if found is None else found


def _named(folder: str | Path, key: str) -> str:
    """A token that tokenizer_config.json or special_tokens_map.json names, "" where neither does."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path(folder) / name
        found = read_json(path).get(key) if path.exists() else None
        text = found.get("content") if isinstance(found, dict) else found
        if isinstance(text, str) and text:
            return text
    return ""


def end_ids(folder: str | Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer, increasing: those of `END_TOKENS`, of generation_config.json, and of config.json, where
    some checkpoints give them for the whole model and others for its language model.

    Raises:
      JvidpruneError: a file that is no JSON object, or lists something else than ids.
    """
    found = {id for token in END_TOKENS if (id := tokenizer.token_id(token)) is not None}
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        raw = read_json(path) if path.exists() else {}
        for part in (raw, raw.get("text_config"), raw.get("llm_config")):
            if isinstance(part, dict):
                found |= _ids(part.get("eos_token_id"), path)
    return tuple(sorted(found))


def _ids(listed: Any, path: Path) -> set[int]:
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in ids):
        raise JvidpruneError(f"{path} gives eos_token_id {quoted(listed)}; it must be an id or a list of ids.")
    return set(ids)
