"""What the tests of tasks share: small data in the official forms, and what holds for the rows of every task."""

import itertools
import json
import math
from collections import Counter, defaultdict

import numpy as np

import tasks
from common.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
RESIDUES = get_tokenizer("chars:ACDEFGHIKLMNPQRSTVWYX0123456789-=_#")
CITIES = ["Amsterdam", "Bologna", "Cordoba", "Dresden", "Esbjerg", "Florence", "Granada", "Hamburg", "Iseo", "Jena"]


def gold(rows):
    return [e.answer for e in rows]


def contents(rows):
    return [(e.id, e.prompt, e.answer, e.blanks) for e in rows]


def prompts(rows):
    return [(e.id, e.prompt, e.answer, e.options) for e in rows]


def check_rows(make):
    """Rows depend on the seed alone, and both sides are made of different examples."""
    a, b, c = make(0), make(0), make(1)
    assert contents(a.val) == contents(b.val) != contents(c.val)
    assert contents(a.train) == contents(b.train) != contents(c.train)
    assert not {e.id for e in a.train} & {e.id for e in a.val}
    assert max(len(e.answer) for e in a.val) <= a.max_new_tokens
    assert all(e.prompt[i] == RESIDUES.mask_id or e.prompt[i] == BYTES.mask_id for e in a.val for i in e.blanks)
    return a


# --- files
def write(path, rows, lines=False) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(path) -> list[dict]:
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f] if str(path).endswith("l") else json.load(f)


def rows_file(path, rows) -> str:
    return write(path, rows, lines=True)


# --- rows
def made_up(n: int, length: int = 120, seed: int = 0) -> list[dict]:
    """Random sequences, with a helix wherever an A, E or L stands and a strand at V or I; some residues not seen."""
    random, rows = np.random.default_rng(seed), []
    for i in range(n):
        seq = "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), length))
        labels = "".join("H" if c in "AEL" else "E" if c in "VI" else "C" for c in seq)
        mask = "".join("0" if x < 0.2 else "1" for x in random.random(length))
        rows.append(
            {"id": f"p{i}", "seq": seq, "ss3": labels, "mask": mask, "cb": (random.random((length, 3)) * 30).tolist()}
        )
    return rows


def arc_row(i: int, labels="ABCD", **more) -> dict:
    """The right city is the i-th of those on offer; its label changes with i."""
    choices = [{"text": CITIES[(i + j) % 10], "label": label} for j, label in enumerate(labels)]
    stem = f"Which city has the number {i}, that is {CITIES[(i + i % len(labels)) % 10]}?"
    return {"id": str(i), "question": {"stem": stem, "choices": choices}, "answerKey": labels[i % len(labels)], **more}


def arc_files(tmp_path, n_train=300, n_val=200) -> dict:
    labels = itertools.cycle(["ABCD", "1234", "ABC", "ABCDE"])
    rows = [arc_row(i, next(labels)) for i in range(n_train + n_val)]
    return {
        "data": write(tmp_path / "train.jsonl", rows[:n_train], lines=True),
        "val_data": write(tmp_path / "dev.jsonl", rows[n_train:], lines=True),
    }


def hotpot_row(i: int, n=10, size=1) -> dict:
    """Two of n paragraphs tell the answer; the text of paragraph j of row i is found nowhere else."""
    facts = [f"The twin of city {i} is town {i}.", f"The mayor of town {i} is {CITIES[i % 10]} {i}."]
    context = [
        [f"Page {i}-{j}", [f"Here begins page {i}-{j}."] + [f" It has a line {k}." for k in range(size * (1 + j))]]
        for j in range(n)
    ]
    for j, fact in zip((i % n, (i + 3) % n), facts, strict=True):
        context[j][1].insert(1, f" {fact}")
    titles = [context[i % n][0], context[(i + 3) % n][0]]
    question, answer = f"Who is the mayor of the twin of city {i}?", f"{CITIES[i % 10]} {i}"
    return {
        "_id": str(i),
        "question": question,
        "answer": answer,
        "supporting_facts": [[t, 1] for t in titles],
        "context": context,
    }


def squad_article(i: int, n=3, words=60) -> dict:
    paragraphs = []
    for j in range(n):
        year = 1000 + 10 * i + j
        filler = [f"w{k}" for k in range(words)]
        at = (7 * i + 13 * j) % (words - 10) + 5
        context = " ".join([*filler[:at], f"Town {i}-{j} was founded in {year} AD.", *filler[at:]])
        answers = [{"text": t, "answer_start": context.index(t)} for t in (str(year), f"in {year} AD", f"{year} AD")]
        qas = [{"id": f"{i}-{j}", "question": f"When was town {i}-{j} founded?", "answers": answers}]
        paragraphs.append({"context": context, "qas": qas})
    return {"title": f"Article {i}", "paragraphs": paragraphs}


def build_squad(tmp_path, n_train=0, n_val=30, articles=40, seed=0, **options):
    data = write(tmp_path / "squad.json", {"version": "1.1", "data": [squad_article(i) for i in range(articles)]})
    return tasks.build("squad", BYTES, seed, n_train, n_val, data=data, **options)


# --- rows with blanks, of one byte a token
def visible(e) -> str:
    return "".join("_" if i in e.blanks else chr(t) for i, t in enumerate(e.prompt))


def text_of(ids) -> str:
    return "".join(map(chr, ids))


def check_split(task, other):
    """Same rows when built again, different ones for another seed, nothing on both sides whatever the seed."""
    ids = [e.id for e in task.val]
    assert len(set(ids)) == len(ids)
    assert not {e.id for e in task.train} & set(ids)
    assert not {e.id for e in other.train} & set(ids)
    assert [e.prompt for e in task.train] != [e.prompt for e in other.train]
    for e in [*task.train, *task.val]:
        assert [i for i, t in enumerate(e.prompt) if t == BYTES.mask_id] == e.blanks
        assert len(e.answer) == len(e.blanks) <= task.max_new_tokens


# --- ceilings, by all outcomes of small rows
class Every:
    """Stands for a generator of random numbers; rewinds through all equally likely outcomes."""

    def __init__(self):
        self.path, self.at = [], 0

    def pick(self, n: int) -> int:
        if self.at == len(self.path):
            self.path.append([0, n])
        self.at += 1
        return self.path[self.at - 1][0]

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return low + (self.pick(high - low) if size is None else np.array([self.pick(high - low) for _ in range(size)]))

    def choice(self, n, size, replace):
        left = list(range(n))
        return np.array([left.pop(self.pick(len(left))) for _ in range(size)], dtype=int)

    def permutation(self, x):
        items = np.arange(x) if isinstance(x, int) else np.array(x)
        return items[self.choice(len(items), len(items), False)]

    def next(self) -> float | None:
        """Chance of the outcome that was just used; ready for the next one, if there is one."""
        chance, self.at = math.prod(1 / n for _, n in self.path), 0
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        return chance


def readers(draw) -> tuple[float, float]:
    """Best expected accuracy per blank of a reader of all that stands up to the blank, and of one of all the text."""
    random, left, whole, blanks = Every(), defaultdict(Counter), defaultdict(Counter), 0.0
    while True:
        row = draw(random)
        chance = random.next()
        text = "".join("_" * len(part) if i % 2 else part for i, part in enumerate(row))
        at = [i for i, c in enumerate(text) if c == "_"]
        for i, c in zip(at, "".join(row[1::2]), strict=True):
            left[text[: i + 1]][c] += chance
            whole[text, i][c] += chance
            blanks += chance
        if not random.path:
            return tuple(sum(max(c.values()) for c in seen.values()) / blanks for seen in (left, whole))
