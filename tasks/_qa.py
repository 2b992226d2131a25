"""What question answering tasks share: the official scores, the official files, a split by content, prompts.

Scores are those of the evaluation scripts of SQuAD v1.1 (evaluate-v1.1.py) and HotpotQA (hotpot_evaluate_v1.py), also
where they are odd: a gold answer of nothing but articles and marks gives exact match 1 and F1 0 when it is met.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from common.errors import UserError
from common.token_cache import TokenCache
from common.tokenizer import Tokenizer
from tasks import Example, Task
from tasks._common import Generated, content_id, rng
from tasks._text import local

MARKS = str.maketrans("", "", string.punctuation)
QUESTION = ("last", "first")  # where a prompt can have its question
FILL = ("own", "others")  # whose passages a prompt can be filled with


# --- scores
def normal(text: str) -> str:
    """An answer without case, ASCII marks and articles, one space between words."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(MARKS)).split())


def f1(gold: str, got: str, closed: frozenset = frozenset()) -> float:
    """Overlap of two answers as bags of words; one of `closed` (HotpotQA: yes, no, noanswer) is right or wrong."""
    a, b = normal(gold), normal(got)
    if a != b and closed & {a, b}:
        return 0.0
    a, b = a.split(), b.split()
    same = (Counter(a) & Counter(b)).total()
    return 2 * same / (len(a) + len(b)) if same else 0.0


def score_answers(gold: list[list[str]], got: list[str], closed: frozenset = frozenset()) -> dict[str, float]:
    """f1, em (exact match): means over the rows, each against the gold answer that suits it best."""
    pairs = list(zip(gold, got, strict=True))
    return {
        "f1": sum(max(f1(g, out, closed) for g in answers) for answers, out in pairs) / len(pairs),
        "em": sum(normal(out) in map(normal, answers) for answers, out in pairs) / len(pairs),
    }


# --- files
def find_files(data: str, val_data: str, official: tuple[str, str]) -> tuple[str, str]:
    """Paths of the training and the validation file ("": split the first); names and URLs are downloaded."""
    if not data:
        data, val_data = official[0], val_data or official[1]
    return local(data), local(val_data) if val_data else ""


def parse_rows(path: str, rows: Iterable[tuple[int, dict]], parse: Callable[[dict], object], form: str) -> list:
    """parse(row) of every row; UserError names the row that is not of this form."""
    out = []
    for at, row in rows:
        try:
            out.append(parse(row))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
            problem = f"no {e}" if isinstance(e, KeyError) else e
            raise UserError(f"{path}:{at} is not {form} ({problem}): mend or remove the row") from e
    return out


# --- split
@dataclass(frozen=True)
class Row:
    """What the split needs to know of a row; each task adds what it reads.

    name: content_id of all that makes the row; group: rows of one group are never on both sides.
    """

    name: str
    group: str


def choose(
    task: str,
    rows: list[Row],
    val_rows: list[Row] | None,
    seed: int,
    n_train: int,
    n_val: int,
    misfit: Callable[[Row], str],
) -> tuple[list[Row], list[Row], dict[str, int]]:
    """-> training rows, validation rows, {reason: rows removed for it}; both in an order set by seed and content.

    val_rows: of a separate file, whose groups are all dropped from training; None: the first groups of `rows`.
    n_train, n_val: 0 = all, but n_val must be given when there is one file. misfit: why a row can't be used, or "".
    Validation doesn't depend on n_train. UserError if there are too few rows.
    """
    if n_train < 0 or n_val < (val_rows is None):
        raise UserError(f"{task} with n_train={n_train}, n_val={n_val}: 0 = all, but one file needs n_val of 1 or more")
    removed: Counter = Counter()

    def fitting(rows: list[Row]) -> Iterator[Row]:
        different = {row.name: row for row in rows}
        removed["repeated"] += len(rows) - len(different)
        # by hash rather than by position: a row that comes or goes leaves the others where they are
        order = lambda row: (content_id(f"{seed} {row.group}"), content_id(f"{seed} {row.name}"))
        for row in sorted(different.values(), key=order):
            if reason := misfit(row):
                removed[reason] += 1
            else:
                yield row

    def apart(rows: Iterator[Row], groups: set[str]) -> Iterator[Row]:
        for row in rows:
            if row.group in groups:
                removed["with content of the validation side"] += 1
            else:
                yield row

    fit = fitting(rows)
    val = list(islice(fit if val_rows is None else fitting(val_rows), n_val or None))
    train = list(islice(apart(fit, {row.group for row in val_rows or val}), n_train or None))
    if len(val) < max(1, n_val) or len(train) < max(1, n_train):
        reasons = ", ".join(f"{n} {reason}" for reason, n in removed.most_common() if n)
        raise UserError(
            f"{task} has only {len(train)} training rows (n_train={n_train}) and {len(val)} validation rows"
            f" (n_val={n_val}) of {len(rows) + len(val_rows or [])}; removed: {reasons or 'none'};"
            " lower n_val or n_train (0 = all)"
        )
    return train, val, {reason: n for reason, n in removed.items() if n}


# --- reading
@dataclass(frozen=True)
class Question(Row):
    """A question on passages. answers: the right ones, of which the first is learnt; needed: what must be read."""

    question: str
    answers: tuple[str, ...]
    needed: tuple[str, ...]
    others: tuple[str, ...] = ()


def pack(needed: list[list[int]], others: Iterable[list[int]], room: int, random) -> list[int]:
    """Whole passages, together at most `room` tokens, in random order: all of `needed`, and of `others` what fits.

    The search ends when 8 in a row are too long, so `others` may be many.
    """
    passages, too_long = list(needed), 0
    room -= sum(map(len, needed))
    for ids in others:
        if len(ids) <= room:
            passages.append(ids)
            room, too_long = room - len(ids), 0
        elif (too_long := too_long + 1) == 8:
            break
    return [token for i in random.permutation(len(passages)) for token in passages[i]]


@dataclass
class Reading:
    """Questions on passages -> a task. Passages are drawn and ordered by seed and row alone; a question is never cut.

    name: of the task; question, fill and the limits (in tokens): as in hotpot.build; closed: as in f1().
    """

    name: str
    tok: Tokenizer
    seed: int
    question: str
    fill: str
    max_prompt: int
    min_prompt: int
    max_answer: int
    closed: frozenset = frozenset()

    def __post_init__(self):
        for option, value, known in (("question", self.question, QUESTION), ("fill", self.fill, FILL)):
            if value not in known:
                raise UserError(f"{self.name} has no {option}={value!r}: use {' or '.join(known)}")
        # a passage is needed again: to see whether a row fits and to make it, for other questions on it, to fill up
        self.cache = TokenCache(self.tok, self.name)

    def encode(self, passage: str) -> list[int]:
        return self.cache.encode(f"{passage}\n\n")

    def frame(self, row: Question) -> tuple[list[int], list[int], int]:
        """What stands before and after the passages, and how many tokens these may have."""
        asked = f"Question: {row.question}\n"
        parts = ("Context:\n", f"{asked}Answer:") if self.question == "last" else (f"{asked}\nContext:\n", "Answer:")
        before, after = map(self.tok.encode, parts)
        return before, after, self.max_prompt - len(before) - len(after)

    def answer(self, row: Question) -> list[int]:
        return self.tok.encode(f" {row.answers[0]}")

    def needed(self, row: Question, room: int) -> list[list[int]]:
        """The passages that must be in the prompt; may be shortened to `room` tokens where that loses nothing."""
        return [self.encode(passage) for passage in row.needed]

    def make(self, row: Question, pool: Sequence[str]) -> Example:
        before, after, room = self.frame(row)
        random, own = rng(self.seed, row.name), {*row.needed, *row.others}
        rest = (row.others[i] for i in random.permutation(len(row.others)))
        more = (pool[i] for i in random.permutation(len(pool)) if pool[i] not in own)
        body = pack(self.needed(row, room), map(self.encode, chain(rest, more)), room, random)
        return Example(row.name, before + body + after, self.answer(row), meta={"answers": list(row.answers)})

    def misfit(self, row: Question) -> str:
        """Why a row can't be an example; "" if it can."""
        if not row.needed:
            return "without all of its supporting facts"
        if len(self.answer(row)) > self.max_answer:
            return f"with an answer over max_answer_tokens={self.max_answer}"
        before, after, room = self.frame(row)
        if sum(map(len, self.needed(row, room))) > room:
            return f"with more to read than max_prompt_tokens={self.max_prompt}"
        if self.min_prompt and len(self.make(row, ()).prompt) < self.min_prompt:
            return f"with a prompt under min_prompt_tokens={self.min_prompt}"
        return ""

    def score(self, examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        gold = [e.meta["answers"] for e in examples]
        return score_answers(gold, [self.tok.decode(ids) for ids in predictions], self.closed)

    def task(self, path: str, rows: list[Question], val_rows: list[Question] | None, n_train: int, n_val: int) -> Task:
        train, val, removed = choose(f"{self.name} ({path})", rows, val_rows, self.seed, n_train, n_val, self.misfit)
        # passages to fill up with come from rows of the same side, and for training from none that validation has
        passages = lambda rows: dict.fromkeys(p for row in rows for p in (*row.needed, *row.others))
        val_pool = passages(val) if self.fill == "others" else {}
        train_pool = [p for p in passages(train) if p not in val_pool] if self.fill == "others" else ()
        val_pool = tuple(val_pool)
        examples = [self.make(row, val_pool) for row in val]
        self.cache.save()
        ((common, _),) = Counter(normal(row.answers[0]) for row in train).most_common(1)
        levels = {"majority": score_answers([row.answers for row in val], [common] * len(val), self.closed)["f1"]}
        lazy = Generated(lambda i: self.make(train[i], train_pool), len(train))
        task = Task(lazy, examples, self.score, "f1", levels, self.max_answer + 1)
        task.removed = removed
        return task
