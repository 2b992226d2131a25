"""ARC-Challenge: grade-school science questions with 3 to 5 choices; the answer is the label of one of them.

    Options:
    A. fog
    B. rain
    C. drought
    D. tornado

    Question: What will most likely result if a high-pressure system remains in an area for a long period of time?
    Answer: C

With the question last a causal reader meets the options before it knows what they are about; with the question first
(the control) it does not. `accuracy` compares the likelihoods of the labels, `accuracy_decoded` takes what is written.
Official JSON lines, or the parquet files of allenai/ai2_arc. Training questions (without case and marks) that are in
the validation file are dropped.
"""

import re
from collections import Counter
from dataclasses import dataclass

from common.errors import UserError
from tasks import Example, Task
from tasks._common import Generated, content_id
from tasks._qa import QUESTION, Row, choose, find_files, parse_rows
from tasks._text import read_table


@dataclass(frozen=True)
class Question(Row):
    """group: the question without case and marks."""

    question: str
    choices: tuple[tuple[str, str], ...]  # (label, text)
    gold: int  # the place of the right one


def parse(row: dict) -> Question:
    question, choices = row["question"], row.get("choices")
    if isinstance(question, dict):  # the official form: {"stem": ..., "choices": [{"text": ..., "label": ...}, ...]}
        question, choices = question["stem"], [(c["label"], c["text"]) for c in question["choices"]]
    else:
        choices = list(zip(choices["label"], choices["text"], strict=True))
    choices = tuple((label.strip(), " ".join(text.split())) for label, text in choices)
    labels = [label for label, _ in choices]
    if len(set(labels)) < max(2, len(labels)):
        raise ValueError(f"labels {labels}")
    question = " ".join(question.split())
    group = re.sub(r"\W+", " ", question.lower()).strip()
    return Question(content_id(f"{group}\0{choices}"), group, question, choices, labels.index(row["answerKey"].strip()))


def build(
    tok,
    seed: int,
    n_train: int,  # 0 = all
    n_val: int,  # 0 = all, if there is a file of them
    data: str = "",  # file of training questions; "" = ARC-Challenge-Train, downloaded
    val_data: str = "",  # file of validation questions; "" = ARC-Challenge-Dev, or n_val of `data` if that is given
    question: str = "last",  # last: options first | first
    max_prompt_tokens: int = 512,  # longer ones are left out, never cut
) -> Task:
    if question not in QUESTION:
        raise UserError(f"arc has no question={question!r}: use last or first")
    path, val_path = find_files(data, val_data, ("ARC-Challenge-Train.jsonl", "ARC-Challenge-Dev.jsonl"))

    def load(path: str) -> list[Question]:
        return parse_rows(path, read_table(path), parse, "a question of ARC")

    def make(row: Question) -> Example:
        options = "Options:\n" + "".join(f"{label}. {text}\n" for label, text in row.choices)
        asked = f"Question: {row.question}\n"
        prompt = f"{options}\n{asked}Answer:" if question == "last" else f"{asked}\n{options}\nAnswer:"
        answers = [tok.encode(f" {label}") for label, _ in row.choices]
        meta = {"label": row.choices[row.gold][0], "gold": row.gold}
        return Example(row.name, tok.encode(prompt), answers[row.gold], meta=meta, options=answers)

    def misfit(row: Question) -> str:
        too_long = len(make(row).prompt) > max_prompt_tokens
        return f"with a prompt over max_prompt_tokens={max_prompt_tokens}" if too_long else ""

    val_rows = load(val_path) if val_path else None
    train, val_rows, removed = choose(f"arc ({path})", load(path), val_rows, seed, n_train, n_val, misfit)

    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        right = [tok.decode(p).strip() == e.meta["label"] for e, p in zip(examples, predictions, strict=True)]
        return {"accuracy_decoded": sum(right) / len(right)}

    def score_options(examples: list[Example], chosen: list[int]) -> dict[str, float]:
        right = [e.meta["gold"] == i for e, i in zip(examples, chosen, strict=True)]
        return {"accuracy": sum(right) / len(right)}

    val = [make(row) for row in val_rows]
    # by place: 1 and A, the labels of some questions and of others, are the same answer
    ((common, _),) = Counter(row.gold for row in train).most_common(1)
    levels = {
        "chance": sum(1 / len(row.choices) for row in val_rows) / len(val),
        "majority": score_options(val, [common] * len(val))["accuracy"],
    }
    longest = max(len(option) for e in val for option in e.options)
    rows = Generated(lambda i: make(train[i]), len(train))
    task = Task(rows, val, score, "accuracy", levels, longest + 1, score_options=score_options)
    task.removed = removed
    return task
