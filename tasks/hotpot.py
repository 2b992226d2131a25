"""HotpotQA, distractor setting: a question whose answer takes two of some ten paragraphs.

    Context:
    Title: Meet Corliss Archer
    Meet Corliss Archer, a program from radio's Golden Age, ran from January 7, 1943 to September 30, 1956. ...

    Title: Kiss and Tell (1945 film)
    ...

    Question: What government position was held by the woman who portrayed Corliss Archer in the film Kiss and Tell?
    Answer: Chief of Protocol

The context holds whole paragraphs, as many as the token budget allows, in random order: those with supporting facts,
the row's other ones, and then, if asked, those of other rows on the same side of the split. Neither the question nor a
paragraph with a supporting fact is ever cut. Scores are the official F1 and exact match. Official JSON, or parquet as
hotpotqa/hotpot_qa has it. A file of the development set's size (46 MB) takes 0.2 GB of memory; the official training
file has twelve times as much, and the development set, split by content, enough for most purposes.
"""

from tasks import Task
from tasks._common import content_id
from tasks._qa import Question, Reading, find_files, normal, parse_rows
from tasks._text import read_table

CLOSED = frozenset(("yes", "no", "noanswer"))


def parse(row: dict) -> Question:
    context, facts = row["context"], row["supporting_facts"]
    if isinstance(context, dict):  # parquet has columns, the official JSON has [title, sentences] and [title, number]
        context, facts = zip(context["title"], context["sentences"], strict=True), zip(facts["title"])
    question, answer = (" ".join(row[key].split()) for key in ("question", "answer"))
    titles = {fact[0] for fact in facts}
    passages = [(title, f"Title: {title}\n{' '.join(' '.join(sentences).split())}") for title, sentences in context]
    if not question or not answer:
        raise ValueError("an empty question or answer")
    needed, others = (tuple(p for t, p in passages if (t in titles) == gold) for gold in (True, False))
    if titles - {title for title, _ in passages}:  # as in the fullwiki setting
        needed = ()
    group = normal(question)
    return Question(content_id(f"{group}\0{answer}\0{sorted(passages)}"), group, question, (answer,), needed, others)


def build(
    tok,
    seed: int,
    n_train: int,  # 0 = all
    n_val: int,  # 0 = all, if there is a file of them
    data: str = "",  # file; "" = the development set, downloaded
    val_data: str = "",  # file of validation rows; "" = n_val rows of data, chosen by seed and content
    question: str = "last",  # last: after the context | first
    fill: str = "own",  # own: the row's paragraphs | others: then those of other rows, up to max_prompt_tokens
    max_prompt_tokens: int = 2048,  # rows whose paragraphs with supporting facts don't fit are left out
    min_prompt_tokens: int = 0,  # rows whose own paragraphs make less are left out
    max_answer_tokens: int = 24,  # rows with longer ones are left out
) -> Task:
    limits = max_prompt_tokens, min_prompt_tokens, max_answer_tokens
    reading = Reading("hotpot", tok, seed, question, fill, *limits, CLOSED)
    path, val_path = find_files(data, val_data, ("hotpot_dev_distractor_v1.json", ""))
    rows, val_rows = (parse_rows(p, read_table(p), parse, "a HotpotQA row") if p else None for p in (path, val_path))
    return reading.task(path, rows, val_rows, n_train, n_val)
