"""SQuAD v1.1: a question on a paragraph of Wikipedia, whose answer is a span of it.

    Context:
    The Panthers defense gave up just 308 points, ranking sixth in the league, while also leading the NFL in ...

    Question: How many points did the Panthers defense surrender?
    Answer: 308

A paragraph over the token budget is cut to a window of whole words around the answers, at a random place, so that the
middle gives nothing away. No article is on both sides of the split. Scores are the official F1 and exact match, the
best over all gold answers. Official JSON, or parquet as rajpurkar/squad has it.
"""

import json
import re
from bisect import bisect_left
from dataclasses import dataclass

from common.errors import UserError
from tasks import Task
from tasks._common import content_id, rng
from tasks._qa import Question, Reading, find_files, parse_rows
from tasks._text import read_table, read_text


@dataclass(frozen=True)
class Spanned(Question):
    span: tuple[int, int] = (0, 0)  # characters of the passage, from the first gold answer to the end of the last


def parse(qa: dict) -> Spanned:
    """One question: {"context", "question", "answers": [{"text", "answer_start"}], "title"}."""
    context, question, answers = qa["context"], " ".join(qa["question"].split()), qa["answers"]
    if isinstance(answers, dict):  # parquet has columns
        answers = list(zip(answers["text"], answers["answer_start"], strict=True))
    else:
        answers = [(answer["text"], answer["answer_start"]) for answer in answers]
    texts, spans = tuple(" ".join(t.split()) for t, _ in answers), [(i, i + len(t)) for t, i in answers]
    if not all(texts) or [context[i:j] for i, j in spans] != [t for t, _ in answers]:
        raise ValueError("an answer is empty or not where its answer_start says")
    if not question or not answers:
        raise ValueError("a question needs an answer: SQuAD 2.0 has some without")
    span = min(i for i, _ in spans), max(j for _, j in spans)
    name = content_id(f"{qa.get('id')}\0{question}\0{context}")  # with its id: some were asked twice
    return Spanned(name, qa.get("title") or context, question, texts, (context,), span=span)


def load(path: str) -> list[Spanned]:
    if not path.endswith(".json"):
        return parse_rows(path, read_table(path), parse, "a SQuAD v1.1 question")

    def parse_article(article: dict) -> list[Spanned]:
        about = [({"title": article.get("title"), "context": p["context"]}, p["qas"]) for p in article["paragraphs"]]
        return [parse({**qa, **paragraph}) for paragraph, qas in about for qa in qas]

    try:
        articles = json.loads(read_text(path))["data"]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise UserError(f'{path} is not SQuAD\'s {{"data": [...]}} ({type(e).__name__}: {e}): check the file') from e
    rows = parse_rows(path, enumerate(articles, 1), parse_article, "an article of SQuAD v1.1")
    return [row for article in rows for row in article]


class Windows(Reading):
    def needed(self, row: Spanned, room: int) -> list[list[int]]:
        """The paragraph, or the largest window of it with all gold answers that fits; too long if none does."""
        (context,) = row.needed
        ids = self.encode(context)
        if len(ids) <= room:
            return [ids]
        words = [m.span() for m in re.finditer(r"\S+", context)]
        first = sum(start <= row.span[0] for start, _ in words[1:])  # the word in which the answers begin
        last = sum(end < row.span[1] for _, end in words[:-1])
        place = rng(self.seed, row.name, "window").random()

        def window(n: int) -> list[int]:
            low, high = max(0, last + 1 - n), min(first, len(words) - n)
            i = low + round(place * (high - low))
            return self.encode(context[words[i][0] : words[i + n - 1][1]])

        sizes = range(last - first + 1, len(words))
        fitting = bisect_left(sizes, True, key=lambda n: len(window(n)) > room)
        return [window(sizes[fitting - 1])] if fitting else [ids]


def build(
    tok,
    seed: int,
    n_train: int,  # 0 = all
    n_val: int,  # 0 = all, if there is a file of them
    data: str = "",  # file of training questions; "" = train-v1.1, downloaded
    val_data: str = "",  # file of validation questions; "" = dev-v1.1, or n_val of `data` if that is given
    question: str = "last",  # last: after the context | first
    fill: str = "own",  # own: the paragraph alone | others: and paragraphs of other questions, up to max_prompt_tokens
    max_prompt_tokens: int = 512,  # longer paragraphs are cut around the answers
    max_answer_tokens: int = 32,  # of the first gold answer; rows with longer ones are left out
) -> Task:
    reading = Windows("squad", tok, seed, question, fill, max_prompt_tokens, 0, max_answer_tokens)
    path, val_path = find_files(data, val_data, ("squad-train-v1.1.json", "squad-dev-v1.1.json"))
    return reading.task(path, load(path), load(val_path) if val_path else None, n_train, n_val)
