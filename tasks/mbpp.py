"""MBPP: write the Python function that a sentence and three asserts describe; scored by executing it.

    Problem:
    Write a function to find the shared elements from the given two lists.

    Tests:
    assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)
    ...

    Notes:
    - Write a python function to identify non-prime numbers.
    assert is_not_prime(2) == False
    ...

    Python solution:

and the answer is a new line and the code. The notes are other problems of the same split with their tests, never code,
and never one that shares its text, its code or a test with the example; as many whole ones as the budget holds.

The splits are the official ones (Austin et al. 2021, section 2.1, and the README of the data): of task_id, 1-10 are
few-shot prompts, not used here, 11-510 test, 511-600 validation, 601-974 train. They overlap: 602 has the text of 217,
625 the code of 591. What shares text, code or a test with the validation set is dropped from training.
"""

import re
from collections import Counter

from common import sandbox
from common.errors import UserError
from tasks import Example, Task
from tasks._common import Generated, content_id, rng
from tasks._text import read_rows

SPLITS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}
TRIGGER = "Python solution:"


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k programs is right, from n drawn of which c are: 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al. 2021, equation 1), as a product, so that no binomial overflows. Needs k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise UserError(f"pass@{k} of {n} programs with {c} right is not defined: draw at least {k} programs")
    all_wrong = 1.0
    for i in range(k):
        all_wrong *= max(0, n - c - i) / (n - i)
    return 1.0 - all_wrong


# --- problems
def clean(code: str) -> str:
    """One kind of line ending (the file has CRLF, in four places CR alone), no blanks at the end of a line."""
    return "\n".join(line.rstrip() for line in re.sub(r"\r+\n?", "\n", code).split("\n")).strip("\n")


def contents(row: dict) -> set[str]:
    """What two problems must not have in common: text, code and each test, but for white space and case."""
    return {"".join(part.lower().split()) for part in (row["text"], row["code"], *row["test_list"])}


def read(path: str) -> dict[int, dict]:
    """{task_id: row}; UserError names the row that is not MBPP's."""
    rows = {}
    for line, row in read_rows(path):
        kinds = {"task_id": int, "text": str, "code": str, "test_list": list}
        for key, kind in kinds.items():
            if not isinstance(row.get(key), kind) or not row[key]:
                raise UserError(f"{path}:{line} has no {key!r} ({kind.__name__}): it is not a row of mbpp.jsonl")
        try:
            for test in row["test_list"]:
                sandbox.question(test)  # now rather than after hours of training
        except UserError as e:
            raise UserError(f"{path}:{line}: {e}") from e
        rows[row["task_id"]] = row | {
            "text": row["text"].strip(),
            "code": clean(row["code"]),
            "test_list": [test.strip() for test in row["test_list"]],
            "setup": clean(row.get("test_setup_code") or ""),
        }
    return rows


class Prompts:
    """Makes the examples of one split; the notes of each are drawn by seed and task_id."""

    def __init__(self, tok, seed: int, rows: list[dict], order: str, notes: bool, max_prompt_tokens: int):
        self.tok, self.seed, self.order, self.limit = tok, seed, order, max_prompt_tokens
        self.notes = [(contents(r), tok.encode("\n- " + "\n".join([r["text"], *r["test_list"]]))) for r in rows]
        self.notes = self.notes if notes else []

    def parts(self, row: dict) -> tuple[str, str]:
        """The prompt before and after its notes."""
        problem = "Problem:\n{}\n\nTests:\n{}".format(row["text"], "\n".join(row["test_list"]))
        if not self.notes:
            return "", f"{problem}\n\n{TRIGGER}"
        if self.order == "question_first":
            return f"{problem}\n\nNotes:", f"\n\n{TRIGGER}"
        return "Notes:", f"\n\n{problem}\n\n{TRIGGER}"

    def make(self, row: dict) -> Example:
        own, (before, after), body = contents(row), map(self.tok.encode, self.parts(row)), []
        room = self.limit - len(before) - len(after)
        for i in rng(self.seed, row["task_id"]).permutation(len(self.notes)):
            other, ids = self.notes[i]
            if len(ids) <= room - len(body) and not own & other:
                body += ids
        meta = {key: row[key] for key in ("task_id", "code", "setup", "test_list")}
        name = content_id(f"{row['text']}\0{row['code']}")
        return Example(name, before + body + after, self.tok.encode("\n" + row["code"]), meta=meta)

    def misfit(self, row: dict, max_answer_tokens: int) -> str:
        """Why a problem can't be an example; "" if it can."""
        if 0 < max_answer_tokens < len(self.tok.encode("\n" + row["code"])):
            return f"with code over max_answer_tokens={max_answer_tokens}"
        if sum(len(self.tok.encode(part)) for part in self.parts(row)) > self.limit:
            return f"with a problem over max_prompt_tokens={self.limit}"
        return ""


# --- score
def score_codes(examples: list[Example], codes: list[str], limits: sandbox.Limits | None) -> dict[str, float]:
    """exact: share of answers that are the very code of the data. Unless `limits` is None, by executing them:

    pass@1: share of programs that pass all their tests; exec_ok: that run without exception, tests apart;
    tests_passed: share of all tests.
    """
    n = len(examples)
    scores = {"exact": sum(clean(code) == e.meta["code"] for e, code in zip(examples, codes, strict=True)) / n}
    if limits is None:
        return scores
    todo = [
        sandbox.Program(code.strip("\n"), e.meta["setup"], tuple(e.meta["test_list"]))
        for e, code in zip(examples, codes, strict=True)
    ]
    verdicts = sandbox.run(todo, limits)
    tests = [passed for v in verdicts for passed in v.passed]
    return {
        "pass@1": sum(v.solved for v in verdicts) / n,
        "exec_ok": sum(v.ran for v in verdicts) / n,
        "tests_passed": sum(tests) / len(tests),
        **scores,
    }


def find_file(data: str) -> str:
    if data:
        return data
    from common.download import fetch  # here, so that a file of one's own needs no requests

    return str(fetch("mbpp.jsonl"))


def build(
    tok,
    seed: int,
    n_train: int,  # 0 = all that are left
    n_val: int,  # 0 = all of val_split
    data: str = "",  # path of mbpp.jsonl; "" = downloaded
    val_split: str = "validation",  # validation: 90 problems | test: 500, which published numbers are about
    order: str = "question_first",  # question_first | notes_first: the problem after the notes (control)
    notes: str = "fill",  # fill: up to max_prompt_tokens | none
    max_prompt_tokens: int = 3072,
    max_answer_tokens: int = 0,  # problems with longer code are left out of both sides; 0 = none is
    execute: bool = True,  # False: compare text only, where programs can't be contained
    cpu_seconds: int = 10,  # of a program
) -> Task:
    for name, value, known in (
        ("val_split", val_split, ("validation", "test")),
        ("order", order, ("question_first", "notes_first")),
        ("notes", notes, ("fill", "none")),
    ):
        if value not in known:
            raise UserError(f"mbpp has no {name}={value!r}: use one of {', '.join(known)}")
    if execute and (lack := sandbox.missing()):
        raise UserError(
            f"mbpp executes what the model writes, and nothing here would contain it: {lack}; use another machine, or"
            " --task_args.execute=False to compare text only"
        )
    path, removed = find_file(data), Counter()
    rows, sides, made = read(path), {}, {}
    splits = {side: [rows[i] for i in SPLITS[side] if i in rows] for side in ("train", val_split)}
    seen = set().union(*map(contents, splits[val_split]))
    for side, split in splits.items():
        make = Prompts(tok, seed, split, order, notes == "fill", max_prompt_tokens)
        sides[side], made[side] = [], make
        for row in (split[i] for i in rng(seed, side).permutation(len(split))):
            why = make.misfit(row, max_answer_tokens)
            why = why or ("that validation shares" if side == "train" and seen & contents(row) else "")
            if why:
                removed[why] += 1
            else:
                sides[side].append(row)
    train, val = sides["train"], sides[val_split]
    if len(train) < max(1, n_train) or len(val) < max(1, n_val):
        reasons = ", ".join(f"{n} {why}" for why, n in removed.items()) or "none was left out"
        raise UserError(
            f"mbpp has {len(train)} problems to train on and {len(val)} of {val_split} in {path} ({reasons}),"
            f" n_train={n_train} and n_val={n_val} can't be had: lower them (0 = all)"
        )
    examples = [made[val_split].make(row) for row in val[: n_val or None]]
    train = train[: n_train or None]
    limits = sandbox.Limits(cpu_seconds=cpu_seconds) if execute else None

    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        return score_codes(examples, [tok.decode(ids) for ids in predictions], limits)

    lazy = Generated(lambda i: made["train"].make(train[i]), len(train))
    longest = max(len(e.answer) for e in examples)
    task = Task(lazy, examples, score, "pass@1" if execute else "exact", {"chance": 0.0}, longest + 32)
    task.removed = dict(removed)
    return task
