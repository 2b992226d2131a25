"""Text with blanks in it: windows of a text file in which a part of the tokens is masked.

    random   It is a c_pit_l m_s_ake to th___ize _ef_re one ha_ d_ta.    a share of the tokens, drawn for each window
    prefix   ____________________________heorize before one has data.    the first half
    span     It is a capital mistake__________ze before one has data.    `span` tokens in the middle

The file is cut into blocks of `length` tokens. One block in ten, chosen by its content, is for validation; training
windows begin anywhere, and never touch a block of validation.
"""

from collections import Counter

import numpy as np

from common.errors import UserError
from tasks import Example, Task
from tasks._common import Generated, cell_scores, content_id, held_out, rng
from tasks._text import local, read_text

MASKS = ("random", "prefix", "span")


def blanks_of(random, length: int, mask: str, span: int) -> list[int]:
    """Positions of the blanks in a window, at least one."""
    if mask == "prefix":
        return list(range(length // 2))
    if mask == "span":
        start = (length - span) // 2
        return list(range(start, start + span))
    chosen = np.flatnonzero(random.random(length) < random.random())
    return chosen.tolist() or [int(random.integers(length))]


def split(tokens: np.ndarray, length: int) -> tuple[dict[str, int], np.ndarray]:
    """-> {name of the content: first token} of the blocks for validation, first tokens of windows that touch none."""
    held, inside = {}, np.zeros(len(tokens), dtype=bool)
    for start in range(0, len(tokens) - length + 1, length):
        name = content_id(repr(tokens[start : start + length].tolist()))
        if held_out(name):
            held[name], inside[start : start + length] = start, True
    total = np.concatenate(([0], np.cumsum(inside)))  # windows outside: the sum of `inside` does not change over them
    return held, np.flatnonzero(total[length:] == total[:-length])


def levels_of(tok, seen: np.ndarray, val: list[Example]) -> dict[str, float]:
    """Expected accuracy of random tokens, and of always the one most frequent in the text of training."""
    most, _ = Counter(seen.tolist()).most_common(1)[0]
    answers = [t for e in val for t in e.answer]
    return {"chance": 1 / tok.vocab_size, "majority": answers.count(most) / len(answers)}


def build(
    tok,
    seed: int,
    n_train: int,  # windows; they overlap if there are more of them than blocks
    n_val: int,  # 0 = all blocks for validation
    data: str = "",  # a text file, UTF-8
    length: int = 128,  # tokens of a window
    mask: str = "random",  # random | prefix | span
    span: int = 32,  # tokens
) -> Task:
    if mask not in MASKS:
        raise UserError(f"text has no mask={mask!r}: use one of {', '.join(MASKS)}")
    if length < 2 or (mask == "span" and not 1 <= span <= length):
        raise UserError(f"text with length={length}, span={span}: use a length of 2 or more and a span of 1 to length")
    if n_train < 1 or n_val < 0:
        raise UserError(f"text with n_train={n_train}, n_val={n_val}: use 1 or more, and 0 (all) or more")
    if not data:
        raise UserError("text needs a file: --task_args.data=PATH")
    if tok.mask_id is None:
        raise UserError(f"text needs a mask token, tokenizer {tok.name!r} has none: use bytes, world or chars:...")
    path = local(data)
    tokens = np.array(tok.encode(read_text(path).replace("\r\n", "\n")), dtype=np.int64)
    if tok.mask_id in tokens:
        raise UserError(f"{path} has the mask token of tokenizer {tok.name} in its text: use another tokenizer")
    held, starts = split(tokens, length) if len(tokens) >= length else ({}, [])
    if len(held) < max(1, n_val) or not len(starts):
        raise UserError(
            f"{path} gave {len(held)} validation blocks of length={length} (n_val={n_val}) and {len(starts)} training"
            f" windows from {len(tokens)} tokens: lower n_val (0 = all) or length, or give more text"
        )

    def window(start: int, *key: object) -> Example:
        ids = tokens[start : start + length].tolist()
        blanks = blanks_of(rng(seed, *key), length, mask, span)
        prompt, hidden = ids.copy(), [ids[i] for i in blanks]
        for i in blanks:
            prompt[i] = tok.mask_id
        return Example(content_id(repr(ids)), prompt, hidden, blanks, {"start": int(start)})

    def train(i: int) -> Example:
        for attempt in range(1000):
            e = window(starts[rng(seed, "window", i, attempt).integers(len(starts))], "train", i)
            if e.id not in held:  # text that repeats itself at other places than those of blocks
                return e
        raise UserError(f"{path} repeats itself too much: hardly a window is not also one of validation")

    order = sorted(held, key=lambda name: content_id(f"{seed} {name}"))
    val = [window(held[name], "val", name) for name in order[: n_val or None]]
    levels = levels_of(tok, tokens[starts], val)
    return Task(Generated(train, n_train), val, cell_scores, "accuracy", levels, max_new_tokens=length)
