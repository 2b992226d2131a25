"""A task turns data into examples and scores predictions. Tasks know tokens, never tensors: no torch in here.

Each file in this directory defines `build(tok, seed, n_train, n_val, **options) -> Task`. Its keyword options are
what a config passes as `task_args = {...}`; their defaults and comments in the signature are the documentation.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.errors import UserError


@dataclass(frozen=True)
class Example:
    """One row: a prompt, then either an answer that continues it or blanks inside it (never both).

    id: stable name of the content; the hash of all validation ids goes into the record.
    prompt: token ids. At `blanks` they already hold the tokenizer's mask id.
    answer: token ids that follow the prompt, without the end-of-text token (the trainer appends it).
    blanks: ascending positions in `prompt` that are to be filled in; `answer` then holds their true ids, in order.
    meta: whatever `score` needs.
    options: answers to compare by their likelihood, as token ids (none: nothing is compared).
    """

    id: str
    prompt: list[int]
    answer: list[int]
    blanks: list[int] = field(default_factory=list)
    meta: dict = field(default_factory=dict)
    options: list[list[int]] = field(default_factory=list)


@dataclass
class Task:
    """Everything the trainer needs to know about a task.

    train, val: examples; `train` may generate its rows lazily (any object with len() and [i]). Disjoint by content.
    score: (examples, predicted ids per example, without end-of-text) -> {metric name: value}, over the whole set.
    score_options: the same from (examples, per example the index of its likeliest option); for examples with options.
    score_odds: the same from (examples, per example and decoded token the log-odds of the two tokens of `contrast`,
        log p(first) - log p(second)); for answers of yes and no, whose ranking counts.
    metric: the key of a result of one of the three that a report quotes; higher is better.
    levels: {name of a level: value of `metric`} to print beside the score, e.g. {"chance": .1, "majority": .3}
        and, where it can be computed, "causal ceiling": the best that any reader without the seed can reach.
    max_new_tokens: bound on free decoding.
    truncate: which side of an over-long prompt may be cut, "left" or "right"; None = never, an error instead.
    removed: what filters took out, {reason: rows}; `python -m tasks NAME` shows it.
    """

    train: Sequence[Example]
    val: list[Example]
    score: Callable[[list[Example], list[list[int]]], dict[str, float]]
    metric: str
    levels: dict[str, float]
    max_new_tokens: int
    truncate: str | None = None
    score_options: Callable[[list[Example], list[int]], dict[str, float]] | None = None
    contrast: tuple[int, int] = (0, 0)
    score_odds: Callable[[list[Example], list[list[float]]], dict[str, float]] | None = None
    removed: dict[str, int] = field(default_factory=dict)


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def build(name: str, tok, seed: int, n_train: int, n_val: int, **options) -> Task:
    """Build the task `name`; an unknown name or option is a UserError that lists the known ones."""
    if name not in names():
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(names())}")
    fn = importlib.import_module(f"tasks.{name}").build
    known = list(inspect.signature(fn).parameters)[4:]
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"task {name} has no option {unknown[0]!r}: it knows {', '.join(known) or 'none'}")
    return fn(tok, seed, n_train, n_val, **options)
