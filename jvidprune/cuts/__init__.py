"""Pruning inside the language model, as data: where it cuts, by what rule, and what decoding reads of the cache."""
