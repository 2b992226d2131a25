"""A task turns data into examples and scores predictions. Tasks know tokens, never tensors: no torch in here.

Each file in this directory defines `build(tok, seed, n_train, n_val, **options) -> Task`. Its keyword options are
what a config passes as `task_args = {...}`; their types, defaults and comments in the signature are the documentation.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Union, get_args, get_origin

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


def signature(name: str) -> dict[str, inspect.Parameter]:
    """The options of the task `name`: their types and defaults. An unknown name is a UserError that lists the known."""
    if name not in names():
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(names())}")
    fn = importlib.import_module(f"tasks.{name}").build
    return dict(list(inspect.signature(fn, eval_str=True).parameters.items())[4:])


def fits(value, kind) -> bool:
    """Whether value is of a type as signatures have it: int, list[int], int | list[int]. A bool is no int."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if origin is list:  # a tuple will do
        return type(value) in (list, tuple) and all(fits(item, one) for item in value for one in get_args(kind))
    return origin in (type(value), inspect.Parameter.empty)  # an option without a type takes anything


def typed(what: str, value, kind, default):
    """`value` if it is of the type `kind`, a whole number as a float where one is wanted; else a UserError."""
    if kind is float and type(value) is int:
        return float(value)
    if not fits(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else kind
        raise UserError(f"{what} must be {wanted} like {default!r}, got {value!r}")
    return value


def build(name: str, tok, seed: int, n_train: int, n_val: int, **options) -> Task:
    """Build the task `name`; an unknown name or option, or a value of a wrong type, is a UserError that says so."""
    known = signature(name)
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"task {name} has no option {unknown[0]!r}: it knows {', '.join(known) or 'none'}")
    for key, value in options.items():
        options[key] = typed(f"task {name}: {key}", value, known[key].annotation, known[key].default)
    return importlib.import_module(f"tasks.{name}").build(tok, seed, n_train, n_val, **options)
