"""Your own examples: prompts and answers, or conversations. One JSON object a line, in either form:

    {"prompt": "Translate: chat\\n", "answer": "cat"}                   as they are: nothing is added or stripped
    {"text": "User: Hi!\\n\\nAssistant: Hello.\\n\\nUser: ...\\n\\nAssistant: ..."}  the last turn is the answer

A text's prompt ends in "Assistant:", its answer begins with the space. End-of-text is added by the trainer.
In `data`, rows that differ only in case or white space count once, and rows with a prompt of the validation set are
dropped from training.
"""

import sys
from collections import Counter

from common.errors import UserError
from tasks import Example, Task
from tasks._common import content_id
from tasks._text import read_rows

TURN = "\n\nAssistant:"


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def split_row(row: dict, where: str, prompt_key: str, answer_key: str) -> tuple[str, str]:
    """-> (prompt, answer), both not empty. UserError says what `where` lacks."""
    if "text" in row and prompt_key not in row:
        text = row["text"]
        if not isinstance(text, str) or TURN not in text:
            raise UserError(f'{where} has a "text" that is not of the form "User: ...\\n\\nAssistant: ..."')
        at = text.rindex(TURN) + len(TURN)
        prompt, answer = text[:at], text[at:]
    else:
        for key in (prompt_key, answer_key):
            if key not in row:
                raise UserError(f"{where} has no {key!r}: a row needs {prompt_key!r} and {answer_key!r}, or 'text'")
            if not isinstance(row[key], str):
                raise UserError(f"{where} has {key!r} of type {type(row[key]).__name__}: it must be a string")
        prompt, answer = row[prompt_key], row[answer_key]
    for name, part in (("prompt", prompt), ("answer", answer)):
        if not part.strip():
            raise UserError(f"{where} has an empty {name}: fill it in or remove the row")
    return prompt, answer


def load(path: str, tok, prompt_key: str, answer_key: str) -> list[Example]:
    out = []
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        prompt, answer = split_row(row, where, prompt_key, answer_key)
        try:
            ids = tok.encode(prompt), tok.encode(answer)
        except UserError as e:
            raise UserError(f"{where}: {e}") from e
        if ids[1][-1] == tok.eot_id:
            ids[1].pop()
        if not ids[1]:
            raise UserError(f"{where} has an answer that is only end-of-text: fill it in or remove the row")
        name = content_id(normal(prompt) + "\0" + normal(answer))
        out.append(Example(name, *ids, meta={"prompt": normal(prompt), "answer": tok.decode(ids[1])}))
    if not out:
        raise UserError(f"{path} has no rows")
    return out


def shuffled(rows: list[Example], seed: int, path: str) -> list[Example]:
    """Without duplicates, ordered by seed and content: rows that come or go leave the others in order."""
    different = {e.id: e for e in rows}
    if len(different) < len(rows):
        print(f"{path}: dropped {len(rows) - len(different)} of {len(rows)} rows as duplicates", file=sys.stderr)
    return sorted(different.values(), key=lambda e: content_id(f"{seed} {e.id}"))


def build(
    tok,
    seed: int,
    n_train: int,  # at most so many; 0 = all
    n_val: int,  # exactly so many; 0 = all of val_data
    data: str = "",  # file of training rows; "" with val_data = evaluation only
    val_data: str = "",  # file of validation rows; "" = n_val rows of data, chosen by seed and content
    prompt_key: str = "prompt",
    answer_key: str = "answer",
    truncate: str = "error",  # a prompt over the trainer's limit: error | left | right (the side that is cut)
) -> Task:
    if truncate not in ("error", "left", "right"):
        raise UserError(f"jsonl has no truncate={truncate!r}: use error, left or right")
    if not data and not val_data:
        raise UserError("jsonl needs a file: --task_args.data=rows.jsonl")
    rows = shuffled(load(data, tok, prompt_key, answer_key), seed, data) if data else []
    # a file that was made to be evaluated is taken as it is: in its order, with its duplicates
    val = load(val_data, tok, prompt_key, answer_key) if val_data else rows
    if n_val > len(val) or n_val < (0 if val_data else 1):
        raise UserError(f"{val_data or data} has {len(val)} rows, n_val={n_val} can't be taken from it")
    val = val[: n_val or None]
    taken = {e.meta["prompt"] for e in val}
    train = [e for e in rows if e.meta["prompt"] not in taken]
    left_out = len(rows) - len(train) - (0 if val_data else len(val))
    train = train[: n_train if n_train > 0 else None]
    if data and not train:
        raise UserError(
            f"{data} has no row left to train on beside the {len(val)} validation rows: lower n_val={n_val}"
        )

    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        """exact: share of answers right but for outer white space; char_accuracy: of characters in place."""
        pairs = [(e.meta["answer"], tok.decode(p)) for e, p in zip(examples, predictions, strict=True)]
        right = sum(a == b for answer, got in pairs for a, b in zip(answer, got, strict=False))
        return {
            "exact": sum(answer.strip() == got.strip() for answer, got in pairs) / len(pairs),
            "char_accuracy": right / sum(len(answer) for answer, _ in pairs),
        }

    levels = {}
    if train:
        ((common, _),) = Counter(tuple(e.answer) for e in train).most_common(1)
        levels["majority"] = score(val, [list(common)] * len(val))["exact"]
    longest = max(len(e.answer) for e in [*train, *val])
    task = Task(train, val, score, "exact", levels, longest + 1, None if truncate == "error" else truncate)
    task.removed = {"with a prompt of the validation side": left_out} if left_out else {}
    return task
