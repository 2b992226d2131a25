"""What several tasks need: random numbers and names that depend on content alone, and one-token-a-character text."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from common.errors import UserError
from tasks import Example


def rng(*key: object) -> np.random.Generator:
    """A generator that is a function of `key`: row i of a task needs no row before it. Any seed will do, also -1."""
    name = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(name, "little")))


def content_id(text: str) -> str:
    """The name of a content, the same on every machine and for every seed."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def held_out(name: str, one_in: int = 10) -> bool:
    """Whether a content belongs to the validation side: decided by its name, so no content is on both sides."""
    return int(name, 16) % one_in == 0


class Generated(Sequence):
    """`n` examples that `make(i)` computes when they are asked for."""

    def __init__(self, make: Callable[[int], Example], n: int):
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Example:
        if not -self.n <= i < self.n:
            raise IndexError(i)
        return self.make(i % self.n)


def generate(draw: Callable[[np.random.Generator], Example], seed: int, n_train: int, n_val: int) -> tuple:
    """Lazy training examples and a list of `n_val` different validation examples, disjoint by `Example.id`.

    Each row draws again until its content is on its own side of `held_out`. UserError if there are too few contents.
    """
    if n_train < 1 or n_val < 1:
        raise UserError(f"n_train={n_train}, n_val={n_val}: a generated task needs at least 1 of each")

    def row(side: str, i: int) -> Example:
        for attempt in range(1000):
            e = draw(rng(seed, side, i, attempt))
            if held_out(e.id) == (side == "val"):
                return e
        raise UserError(f"this task has too few different rows to split into {side} and others: make it longer")

    val, i = {}, 0
    while len(val) < n_val:
        e = row("val", i)
        val[e.id], i = e, i + 1
        if i > 50 * n_val + 100:
            raise UserError(f"this task has only about {len(val)} different validation rows, n_val={n_val}: lower it")
    return Generated(lambda i: row("train", i), n_train), list(val.values())


def char_ids(tok, alphabet: str) -> dict[str, int]:
    """{character: token id}: text of the synthetic tasks has one token a character with every tokenizer.

    UserError if a character has no token of its own.
    """
    ids = {}
    for c in alphabet:
        try:
            (ids[c],) = tok.encode(c)
        except (ValueError, KeyError) as e:  # no such character, or several tokens
            raise UserError(
                f"tokenizer {tok.name!r} has no single token for {c!r}: use tokenizer = 'chars:{alphabet}_#'"
            ) from e
    return ids


def cell_scores(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
    """accuracy: share of answer tokens right, position by position; exact: share of rows without an error."""
    pairs = [(e.answer, list(p)) for e, p in zip(examples, predictions, strict=True)]
    right = sum(a == p for answer, got in pairs for a, p in zip(answer, got, strict=False))
    return {
        "accuracy": right / sum(len(answer) for answer, _ in pairs),
        "exact": sum(answer == got for answer, got in pairs) / len(pairs),
    }
