"""Examples into batches. Their order is a function of (seed, step) alone, so arms and resumed runs see the same."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch

from common.errors import UserError
from tasks import Example, Task

WINDOW = 32  # batches among which rows are sorted by length, so that a batch has little padding


def fit(e: Example, limit: int, side: str | None) -> Example:
    """The example with at most `limit` prompt tokens, cut on `side` ("left", "right"; None = UserError instead)."""
    if not e.prompt or not e.answer:
        raise UserError(f"example {e.id} has an empty {'answer' if e.prompt else 'prompt'}: remove it from the data")
    if len(e.prompt) <= limit:
        return e
    if side is None or e.blanks:
        raise UserError(
            f"example {e.id} has a prompt of {len(e.prompt)} tokens, max_prompt_tokens is {limit}: raise it"
        )
    return replace(e, prompt=e.prompt[-limit:] if side == "left" else e.prompt[:limit])


def fingerprint(examples: list[Example]) -> str:
    """SHA-256 of everything a model sees of `examples`: equal for two runs exactly if they evaluated the same."""
    rows = [(e.id, e.prompt, e.answer, e.blanks, *([e.options] if e.options else [])) for e in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def left_pad(rows: list[list[int]], pad_id: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Token rows of any lengths -> ids (B, T) with the padding on the left, lengths."""
    lengths = [len(r) for r in rows]
    T = max(lengths)
    return torch.tensor([[pad_id] * (T - len(r)) + r for r in rows], dtype=torch.long).view(len(rows), T), lengths


def evenly(order: list[int], n: int) -> list[np.ndarray]:
    """`order` in parts of nearly equal size, at most n; of pairs, one is a three if a row alone would be left over."""
    parts = -(-len(order) // n)
    return np.array_split(order, max(1, min(parts, len(order) // 2) if n > 1 else parts))


class Batches:
    """batches[step] -> `bsz` examples; every epoch is a new permutation, each row at most once in it."""

    def __init__(self, task: Task, bsz: int, seed: int, limit: int):
        if task.train and len(task.train) < bsz:
            raise UserError(
                f"{len(task.train)} training examples don't fill a batch of bsz={bsz}: lower bsz or raise n_train"
            )
        self.task, self.bsz, self.seed, self.limit = task, bsz, seed, limit
        self.at, self.window = None, []  # the window that was used last

    def __getitem__(self, step: int) -> list[Example]:
        epoch, i = divmod(step, len(self.task.train) // self.bsz)
        if self.at != (epoch, i // WINDOW):
            self.at, self.window = (epoch, i // WINDOW), self.make_window(epoch, i // WINDOW)
        return self.window[i % WINDOW]

    def make_window(self, epoch: int, number: int) -> list[list[Example]]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.task.train))
        first, n = number * WINDOW * self.bsz, WINDOW * self.bsz
        rows = [fit(self.task.train[int(i)], self.limit, self.task.truncate) for i in order[first : first + n]]
        rows.sort(key=lambda e: len(e.prompt))
        batches = [rows[i : i + self.bsz] for i in range(0, len(rows) - self.bsz + 1, self.bsz)]
        return [batches[i] for i in np.random.default_rng((self.seed, epoch, number)).permutation(len(batches))]


def padding(lengths, x) -> torch.Tensor | None:
    """True where x (B, T, ...) is left padding, (B, T, 1); None if nothing is; `lengths`: tokens a row, None: T."""
    B, T = x.shape[:2]
    if lengths is None or all(n == T for n in lengths):
        return None
    if len(lengths) != B or not all(0 <= n <= T for n in lengths):
        raise UserError(f"lengths must be {B} numbers from 0 to {T}, got {list(lengths)}")
    start = torch.tensor([T - n for n in lengths], device=x.device)
    return (torch.arange(T, device=x.device) < start[:, None])[..., None]
