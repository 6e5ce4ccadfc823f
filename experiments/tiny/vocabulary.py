"""A byte-level tokenizer in which every known word is one token and every other text is bytes."""

from collections.abc import Iterable
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
"""Special tokens, behind the bytes and the words."""


def word_tokenizer(words: Iterable[str]) -> Any:
    """A tokenizers.Tokenizer of 256 bytes, `words` each with and without a space before it, and `SPECIAL_TOKENS`.

    It is a byte-level BPE without merges that looks a whole word up before it falls back on bytes: no text is lost and
    none needs an unknown token.

    Args:
      words: words and marks; ids follow their sorted order.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = byte_symbols()
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    for word in sorted(set(words)):
        for text in (word, f" {word}"):
            piece = "".join(symbols[byte] for byte in text.encode())
            if len(piece) > 1:
                pieces.append(piece)
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in the byte-level alphabet of GPT-2."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    table |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]
