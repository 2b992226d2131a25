"""Question answering: official scores re-derived, nothing needed cut away, splits by content; and `python -m tasks`."""

import inspect
import itertools
import json
import random
import re
import runpy
import subprocess
import sys

import pytest

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer
from conftest import ROOT
from tasks import __main__ as view
from tasks import _qa, hotpot

BYTES = get_tokenizer("bytes")
CONFIGS = ["arc_optionsfirst", "arc_qfirst", "hotpot_qafter_4096", "hotpot_qfirst", "squad_qafter", "squad_qfirst"]
CITIES = ["Amsterdam", "Bologna", "Cordoba", "Dresden", "Esbjerg", "Florence", "Granada", "Hamburg", "Iseo", "Jena"]


def write(path, rows, lines=False) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(path) -> list[dict]:
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f] if str(path).endswith("l") else json.load(f)


def gold(rows):
    return [e.answer for e in rows]


def prompts(rows):
    return [(e.id, e.prompt, e.answer, e.options) for e in rows]


# --- scores
@pytest.mark.parametrize(
    ("gold", "got", "em", "f1"),
    [
        ("Chief of Protocol", " the chief of  protocol.\n", 1, 1),
        ("1945 to 1951", "from 1945", 0, 2 / 5),  # 1 word of 2 and of 3
        ("New York City", "York, the new", 0, 4 / 5),
        ("to be or not to be", "be be be", 0, 4 / 9),  # two of its three words count: the gold answer has two
        ("U.S.", "us", 1, 1),
        ("theory", "the ory", 0, 0),
        ("yes", "yes it is", 0, 1 / 2),
        ("The", "the", 1, 0),  # nothing is left of either: the scripts say so
        ("1,000", "1000", 1, 1),
        ("x", "", 0, 0),
    ],
)
def test_scores_by_hand(gold, got, em, f1):
    assert _qa.score_answers([[gold]], [got]) == {"em": em, "f1": pytest.approx(f1)}


def test_hotpot_takes_yes_and_no_as_wholes():
    for gold, got, f1 in (
        ("yes", "yes it is", 0),
        ("yes it is", "Yes.", 0),
        ("no", "no", 1),
        ("no one", "no man", 0.5),
        ("noanswer", "noanswer here", 0),
    ):
        assert _qa.f1(gold, got, hotpot.CLOSED) == f1


def test_each_score_takes_the_gold_answer_that_suits_it_best():
    rows = [["February 7, 2016", "7 February", "2016"], ["Levi's Stadium"]]
    # row 1: no exact match, F1 with the second is 2 * 2 / (2 + 3); row 2: 2 * 1 / (2 + 1)
    assert _qa.score_answers(rows, ["on 7 February", "stadium"]) == {"em": 0, "f1": pytest.approx((0.8 + 2 / 3) / 2)}
    assert _qa.score_answers(rows, ["2016", "levis stadium"]) == {"em": 1, "f1": 1}


def another_normal(text: str) -> list[str]:
    """The words of an answer, by runs of letters and digits instead of by expressions."""
    bare = [c for c in text.lower() if not ("!" <= c <= "~" and not c.isalnum())]
    runs = ("".join(run) for _, run in itertools.groupby(bare, key=str.isalnum))
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def another_f1(gold: str, got: str, closed) -> float:
    """Harmonic mean of precision and recall, crossing out one gold word for each that is given."""
    a, b = another_normal(gold), another_normal(got)
    if a != b and any([word] in (a, b) for word in closed):
        return 0.0
    left, hits = list(a), 0
    for word in b:
        if word in left:
            left.remove(word)
            hits += 1
    if not hits:
        return 0.0
    precision, recall = hits / len(b), hits / len(a)
    return 2 * precision * recall / (precision + recall)


def test_scores_equal_a_second_formulation():
    draw, seen = random.Random(0), set()
    words = ["the", "a", "An", "THE", "yes", "No", "noanswer", "no.", "U.S.", "cat-dog", "3.5", "“the”", "l'été", "…"]
    words += ["–", "Ärger", "&", "theory", "an!", "\xa0", "1,000", "a-b"]
    for _ in range(5000):
        one, two = (" ".join(draw.choices(words, k=draw.randint(0, 5))) for _ in range(2))
        assert _qa.normal(one).split() == another_normal(one), one
        for closed in (frozenset(), hotpot.CLOSED):
            assert _qa.f1(one, two, closed) == pytest.approx(another_f1(one, two, closed)), (one, two)
        seen.add((_qa.f1(one, two) > 0, _qa.f1(one, two) > _qa.f1(one, two, hotpot.CLOSED), "“" in one))
    assert len(seen) == 6  # every case was met


# --- arc
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


@pytest.mark.parametrize("question", ["last", "first"])
def test_arc_prompt_says_what_the_labels_mean(tmp_path, question):
    task = tasks.build("arc", BYTES, 0, 0, 0, question=question, **arc_files(tmp_path))
    assert (len(task.train), len(task.val)) == (300, 200)
    assert {len(e.options) for e in task.val} == {3, 4, 5}
    for e in [*task.train, *task.val]:
        text = BYTES.decode(e.prompt)
        asked = re.search(r"Question: (Which .*, that is (\w+)\?)\n", text)
        choices = re.findall(r"(?m)^(\w)\. (.*)$", text)
        assert (asked.start() < text.index("Options:\n")) == (question == "first")
        assert text.endswith("\nAnswer:")
        assert [f" {label}" for label, _ in choices] == [BYTES.decode(o) for o in e.options]
        (label,) = [label for label, city in choices if city == asked[2]]  # as the question of arc_row says
        assert BYTES.decode(e.answer) == f" {label}"
        assert e.options[e.meta["gold"]] == e.answer


def test_arc_scores(tmp_path):
    task = tasks.build("arc", BYTES, 0, 0, 0, **arc_files(tmp_path))
    rows, right = task.val, [e.meta["gold"] for e in task.val]
    assert task.score(rows, gold(rows)) == {"accuracy_decoded": 1.0}
    assert task.score_options(rows, right) == {"accuracy": 1.0}
    assert task.score(rows, [[*e.answer, *b"."] for e in rows]) == {"accuracy_decoded": 0.0}
    assert task.score(rows, [[]] * len(rows)) == {"accuracy_decoded": 0.0}
    # labels of other rows: chance, within 4 standard deviations of a mean of 200
    sd = (0.25 * 0.75 / 200) ** 0.5
    assert abs(task.score_options(rows, right[1:] + right[:1])["accuracy"] - task.levels["chance"]) < 4 * sd
    assert task.metric == "accuracy"
    assert task.max_new_tokens > max(len(e.answer) for e in rows)
    # 50 questions each with 4, 4, 3 and 5 choices
    assert task.levels["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 3 + 1 / 5) / 4)


def test_arc_majority_is_the_commonest_place(tmp_path):
    # training: the second place, as B or 2, is right in 5 of 9; validation: in 1 of 4
    keys = ["B", "B", "2", "2", "2", "A", "A", "A", "4"]
    train = [arc_row(i, "1234" if k.isdigit() else "ABCD", answerKey=k) for i, k in enumerate(keys)]
    val = [arc_row(i + 20, "1234" if k.isdigit() else "ABC", answerKey=k) for i, k in enumerate("B1A4")]
    files = {
        "data": write(tmp_path / "t.jsonl", train, True),
        "val_data": write(tmp_path / "v.jsonl", val, True),
    }
    levels = tasks.build("arc", BYTES, 0, 0, 0, **files).levels
    assert levels == {"majority": 0.25, "chance": pytest.approx((1 / 3 + 1 / 3 + 1 / 4 + 1 / 4) / 4)}


def test_arc_drops_training_questions_that_are_in_validation(tmp_path):
    again = [arc_row(35), arc_row(40)]
    again[0]["question"]["choices"].reverse()  # other choices, then other case and marks
    again[1]["question"]["stem"] = again[1]["question"]["stem"].upper().replace(",", " -")
    other = arc_row(3)  # with other choices it is another question
    other["question"]["choices"].reverse()
    rows = [arc_row(i) for i in range(30)] + again + [arc_row(3), other]
    files = {"data": write(tmp_path / "t.jsonl", rows, True)}
    files["val_data"] = write(tmp_path / "v.jsonl", [arc_row(i) for i in range(30, 50)], True)
    task = tasks.build("arc", BYTES, 0, 0, 5, **files)  # of the whole file, also when few of it are used
    assert len(task.train) == 31
    assert task.removed == {"repeated": 1, "with content of the validation side": 2}


def test_arc_on_real_questions(data):
    folder = "arc-challenge/ARC-Challenge-"
    files = {"data": str(data(f"{folder}Train.jsonl")), "val_data": str(data(f"{folder}Dev.jsonl"))}
    tok = get_tokenizer("world", data("rwkv-vocab/rwkv_vocab_v20230424.txt"))
    source = {}
    for row in read(files["val_data"]):
        choices = {c["label"]: c["text"] for c in row["question"]["choices"]}
        source[" ".join(row["question"]["stem"].split())] = (choices, row["answerKey"])
    for question in ("last", "first"):
        task = tasks.build("arc", tok, 0, 0, 0, question=question, **files)
        assert (len(task.train), len(task.val)) == (1117, 299)
        assert task.score(task.val, gold(task.val)) == {"accuracy_decoded": 1.0}
        for e in task.val:
            text = tok.decode(e.prompt)
            choices, key = source[re.search(r"Question: (.*)", text)[1]]
            assert re.findall(r"(?m)^(\w)\. (.*)$", text) == [(k, " ".join(c.split())) for k, c in choices.items()]
            assert tok.decode(e.answer) == f" {key}"
            assert {len(o) for o in e.options} == {1}  # no label has an advantage by its length
        right = [e.meta["gold"] for e in task.val]
        rolled = task.score_options(task.val, right[1:] + right[:1])["accuracy"]
        assert abs(rolled - task.levels["chance"]) < 4 * (0.25 * 0.75 / 299) ** 0.5
        assert 0.2 < task.levels["majority"] < 0.3


# --- hotpot
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


def build_hotpot(tmp_path, n_train, n_val, rows=80, seed=0, tok=BYTES, **options):
    data = write(tmp_path / "hotpot.json", [hotpot_row(i) for i in range(rows)])
    return tasks.build("hotpot", tok, seed, n_train, n_val, data=data, **{"max_prompt_tokens": 3000} | options)


def pages(e) -> list[str]:
    """The paragraphs of a prompt, each as `Title: ...` and its text."""
    body = re.search(r"Context:\n(.*\n\n)(?:Question|Answer):", BYTES.decode(e.prompt), re.DOTALL)[1]
    return re.findall(r"(Title: .*\n.*)\n\n", body)


@pytest.mark.parametrize("question", ["last", "first"])
@pytest.mark.parametrize("limit", [400, 800, 3000])
@pytest.mark.parametrize("fill", ["own", "others"])
def test_hotpot_cuts_nothing_that_is_needed(tmp_path, question, limit, fill):
    task = build_hotpot(tmp_path, 0, 30, question=question, max_prompt_tokens=limit, fill=fill)
    known = {f"Title: {t}\n{''.join(s)}" for i in range(80) for t, s in hotpot_row(i)["context"]}
    rows, dropped = [*task.train, *task.val], 0
    for e in rows:
        text, found = BYTES.decode(e.prompt), pages(e)
        i = int(re.search(r"city (\d+)\?", text)[1])
        assert len(e.prompt) <= limit
        assert set(found) <= known  # whole ones only
        assert len(set(found)) == len(found)
        assert text.count(f"Question: Who is the mayor of the twin of city {i}?\n") == 1
        assert text.startswith("Question: " if question == "first" else "Context:\n")
        assert text.endswith("\nAnswer:")
        town = re.search(rf"twin of city {i} is (town \d+)\.", text)[1]  # the answer follows from the prompt
        assert BYTES.decode(e.answer) == " " + re.search(rf"mayor of {town} is (\w+ \d+)\.", text)[1]
        own = sum(page.startswith(f"Title: Page {i}-") for page in found)
        dropped += 10 - own
        if limit == 3000:
            assert own == 10
        if fill == "own":
            assert own == len(found)
        elif limit == 3000:
            assert len(e.prompt) > limit - 300  # the longest paragraph
    assert (dropped == 0) == (limit == 3000)
    assert (len(rows) < 80) == (limit == 400) == bool(task.removed)
    if task.removed:
        assert task.removed == {"with more to read than max_prompt_tokens=400": 80 - len(rows)}


def test_hotpot_fills_up_from_the_same_side_only(tmp_path):
    task = build_hotpot(tmp_path, 0, 30, fill="others", max_prompt_tokens=8000)
    sides = [
        {int(re.search(r"city (\d+)\?", BYTES.decode(e.prompt))[1]) for e in side} for side in (task.train, task.val)
    ]
    assert (len(sides[0]), len(sides[1])) == (50, 30)
    assert not sides[0] & sides[1]
    for side, rows in zip(sides, (task.train, task.val), strict=True):
        from_others = {int(re.match(r"Title: Page (\d+)-", page)[1]) for e in rows for page in pages(e)}
        assert from_others == side
    # the validation prompts don't change with the number of training rows
    assert prompts(build_hotpot(tmp_path, 5, 30, fill="others", max_prompt_tokens=8000).val) == prompts(task.val)


def test_hotpot_shared_paragraphs_are_no_fill_for_training(tmp_path):
    rows = [hotpot_row(i) for i in range(40)]
    for row in rows:
        row["context"].append(["Everywhere", ["In all."]])
    for row in rows[:20]:
        row["context"].append(["Not in validation", ["In some."]])
    val = write(tmp_path / "v.json", rows[30:])
    for row in rows[:10]:
        row["context"] = [p for p in row["context"] if p[0] not in ("Everywhere", "Not in validation")]
    options = {"data": write(tmp_path / "t.json", rows[:20]), "val_data": val, "fill": "others"}
    task = tasks.build("hotpot", BYTES, 0, 0, 0, max_prompt_tokens=30_000, **options)
    texts = {int(re.search(r"city (\d+)\?", t)[1]): t for t in (BYTES.decode(e.prompt) for e in task.train)}
    assert all(("Everywhere" in text) == (i >= 10) for i, text in texts.items())
    assert all("Not in validation" in text for text in texts.values())


def test_hotpot_order_is_set_by_the_seed_and_tells_nothing(tmp_path):
    task, again, other = (build_hotpot(tmp_path, 0, 40, seed=seed) for seed in (0, 0, 1))
    assert prompts(task.val) == prompts(again.val)
    assert prompts(task.train) == prompts(again.train)
    assert [e.id for e in task.val] != [e.id for e in other.val]
    same = {e.id: e.prompt for e in [*task.train, *task.val]}
    assert all(same[e.id] != e.prompt for e in [*other.train, *other.val])
    # a paragraph with a supporting fact is at each of the 10 places about equally often: 16 of 160, sd 3.8
    at = [i for e in [*task.train, *task.val] for i, page in enumerate(pages(e)) if "twin" in page or "mayor" in page]
    assert len(at) == 160
    assert all(3 <= at.count(i) <= 31 for i in range(10))


def test_hotpot_split_by_content(tmp_path):
    task, more = (build_hotpot(tmp_path, 0, 20, rows=n) for n in (80, 81))
    assert not {e.id for e in task.train} & {e.id for e in task.val}
    assert len({e.id for e in more.val} - {e.id for e in task.val}) <= 1  # a new row moves at most one
    rows = [hotpot_row(i) for i in range(30)]
    twins = [{**hotpot_row(i), "question": hotpot_row(i)["question"].upper(), "answer": "Nobody"} for i in range(30)]
    data = write(tmp_path / "twins.json", rows + twins + rows[:4])
    task = tasks.build("hotpot", BYTES, 0, 0, 15, data=data)
    asked = [{re.search(r"(?i)city (\d+)\?", BYTES.decode(e.prompt))[1] for e in s} for s in (task.train, task.val)]
    assert not asked[0] & asked[1]
    assert task.removed == {"repeated": 4, "with content of the validation side": 1}  # 7 pairs and half of one


def test_hotpot_filters_and_levels(tmp_path):
    task = build_hotpot(tmp_path, 0, 5, min_prompt_tokens=1)
    sizes = sorted(len(e.prompt) for e in [*task.train, *task.val])
    half = build_hotpot(tmp_path, 0, 5, min_prompt_tokens=sizes[40])
    assert sum(half.removed.values()) == sum(n < sizes[40] for n in sizes) > 0
    with pytest.raises(UserError, match=r"only 75 training rows \(n_train=76\) and 5 validation rows .* removed: none"):
        build_hotpot(tmp_path, 76, 5)
    with pytest.raises(UserError, match=r"0 training .* 0 validation .* 80 with an answer over max_answer_tokens=3"):
        build_hotpot(tmp_path, 1, 1, max_answer_tokens=3)
    rows = [{**hotpot_row(i), "answer": "Yes" if i % 4 else "no"} for i in range(80)]
    rows[3]["supporting_facts"][1] = ["Elsewhere", 0]
    task = tasks.build("hotpot", BYTES, 0, 0, 40, data=write(tmp_path / "yes.json", rows))
    assert task.levels == {"majority": sum(BYTES.decode(a) == " Yes" for a in gold(task.val)) / 40}
    assert task.removed == {"without all of its supporting facts": 1}
    assert task.score(task.val, gold(task.val)) == {"em": 1.0, "f1": 1.0}


def test_hotpot_on_real_rows(data):
    tok = get_tokenizer("world", data("rwkv-vocab/rwkv_vocab_v20230424.txt"))
    names = "hotpot_distractor_literaptor100.json", "hotpot_dev_distractor_v1.first.json"
    files = [str(data(f"hotpotqa/{name}")) for name in names]
    source = {" ".join(row["question"].split()): row for path in files for row in read(path)}
    for limit, question in ((700, "last"), (2048, "first")):
        options = {"data": files[0], "val_data": files[1], "max_prompt_tokens": limit, "question": question}
        task = tasks.build("hotpot", tok, 0, 0, 0, **options)
        assert task.score(task.val, gold(task.val)) == {"em": 1.0, "f1": 1.0}
        rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))
        assert rolled["f1"] < 0.2
        for e in [*task.train, *task.val]:
            text = tok.decode(e.prompt)
            assert tok.encode(text) == e.prompt  # no seams: as if the whole had been encoded at once
            assert len(e.prompt) <= limit
            row = source[re.search(r"(?m)^Question: (.*)$", text)[1]]
            facts = {t for t, _ in row["supporting_facts"]}
            for title, sentences in row["context"]:
                if title in facts:
                    assert f"Title: {title}\n{' '.join(' '.join(sentences).split())}\n\n" in text
            answer = tok.decode(e.answer).strip()
            assert answer in ("yes", "no") or _qa.normal(answer) in _qa.normal(text)


# --- squad
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


@pytest.mark.parametrize("question", ["last", "first"])
@pytest.mark.parametrize("limit", [110, 200, 512])
def test_squad_window_keeps_the_answers(tmp_path, question, limit):
    task = build_squad(tmp_path, max_prompt_tokens=limit, question=question)
    source = {f"{i}-{j}": p["context"] for i in range(40) for j, p in enumerate(squad_article(i)["paragraphs"])}
    assert (len(task.train), len(task.val)) == (90, 30)
    places, cut = [], 0
    for e in [*task.train, *task.val]:
        text = BYTES.decode(e.prompt)
        town = re.search(r"Question: When was town (\S+) founded\?\n", text)[1]
        window = re.search(r"Context:\n(.*)\n\n", text)[1]
        assert text.startswith("Question: " if question == "first" else "Context:\n")
        assert text.endswith("\nAnswer:")
        assert len(e.prompt) <= limit
        assert f" {window} " in f" {source[town]} "  # whole words
        assert f" {window} ".count(f" in {e.meta['answers'][0]} AD. ") == 1  # all three gold answers
        assert BYTES.decode(e.answer) == f" {e.meta['answers'][0]}"
        places.append(window.index(" AD.") / len(window))
        if window != source[town]:
            cut += 1
            assert len(e.prompt) > limit - 5  # as large as it can be: a word more has 3 or 4 bytes
    assert (cut > 0) == (limit < 512)
    assert min(places) < 0.4
    assert max(places) > 0.7  # and not in the middle always


def test_squad_split_by_article(tmp_path):
    task, again, other = (build_squad(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert prompts(task.val) == prompts(again.val)
    assert prompts(task.train) == prompts(again.train)
    assert {e.id for e in task.val} != {e.id for e in other.val}
    town = lambda e: re.search(r"When was town (\d+)-", BYTES.decode(e.prompt))[1]
    train, val = {town(e) for e in task.train}, {town(e) for e in task.val}
    assert not train & val
    assert len(val) == 10
    assert build_squad(tmp_path, n_val=29).removed == {"with content of the validation side": 1}
    val = write(tmp_path / "val.json", {"data": [squad_article(i) for i in (50, 7, 51)]})
    data = str(tmp_path / "squad.json")
    task = tasks.build("squad", BYTES, 0, 0, 0, data=data, val_data=val)
    assert (len(task.train), len(task.val), task.removed) == (117, 9, {"with content of the validation side": 3})


def test_squad_scores_against_all_gold_answers(tmp_path):
    task = build_squad(tmp_path)
    for k in range(3):
        answers = [list(e.meta["answers"][k].encode()) for e in task.val]
        assert task.score(task.val, answers) == {"em": 1.0, "f1": 1.0}
    years = [e.meta["answers"][0] for e in task.val]
    # "the year 1004": 1 of 2 words against 1 of 1; "AD" alone: 1 of 1 against 1 of 2
    for answers in ([f"the year {year}" for year in years], ["AD"] * 30):
        got = task.score(task.val, [list(answer.encode()) for answer in answers])
        assert got == {"em": 0.0, "f1": pytest.approx(2 / 3)}
    assert task.score(task.val, gold(task.val[1:] + task.val[:1])) == {"em": 0.0, "f1": 0.0}
    assert task.levels == {"majority": 0.0}  # no year is the answer twice


def test_squad_what_does_not_fit_is_counted(tmp_path):
    with pytest.raises(UserError, match=r"0 training .* 120 with more to read than max_prompt_tokens=60"):
        build_squad(tmp_path, max_prompt_tokens=60)
    filled = build_squad(tmp_path, fill="others", max_prompt_tokens=1500)
    for side in (filled.train, filled.val):
        towns = {re.search(r"When was town (\S+) ", BYTES.decode(e.prompt))[1] for e in side}
        for e in side:
            there = re.findall(r"Town (\S+) was", BYTES.decode(e.prompt))
            assert 1500 - 320 < len(e.prompt) <= 1500
            assert len(set(there)) == len(there) > 3
            assert set(there) <= towns


def test_squad_on_real_rows(data):
    tok = get_tokenizer("world", data("rwkv-vocab/rwkv_vocab_v20230424.txt"))
    path = data("squad/xquad.en.first32.json")
    paragraphs = [p for article in read(path)["data"] for p in article["paragraphs"]]
    source = {q["id"]: q for p in paragraphs for q in p["qas"]}
    for limit in (100, 512):
        task = tasks.build("squad", tok, 0, 0, 200, data=str(path), max_prompt_tokens=limit)
        assert task.score(task.val, gold(task.val)) == {"em": 1.0, "f1": 1.0}
        assert task.score(task.val, gold(task.val[1:] + task.val[:1]))["f1"] < 0.1
        if limit == 512:
            assert len(task.train) + 200 + sum(task.removed.values()) == len(source) == 826
            assert set(task.removed) == {"with content of the validation side"}
        known = {(q["question"].strip(), a["text"]) for q in source.values() for a in q["answers"]}
        for e in [*task.train, *task.val]:
            text, (answer,) = tok.decode(e.prompt), e.meta["answers"]
            question = re.search(r"(?m)^Question: (.*)$", text)[1]
            assert len(e.prompt) <= limit
            assert answer in text.split("\n\nQuestion:")[0]
            assert any(" ".join(q.split()) == question and " ".join(a.split()) == answer for q, a in known)


# --- reading files
@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("arc", [{"id": 1}], r"bad.jsonl:1 is not a question of ARC \(no 'question'\)"),
        ("arc", [arc_row(1), arc_row(2, answerKey="E")], r"bad.jsonl:2 is not a question of ARC \('E' is not in list"),
        ("arc", [arc_row(1, "AABC")], r"labels \['A', 'A', 'B', 'C'\]"),
        ("arc", [arc_row(1, answerKey=3)], "bad.jsonl:1 is not a question"),
        ("hotpot", [hotpot_row(1), {**hotpot_row(2), "context": 3}], "bad.jsonl:2 is not a HotpotQA row"),
        ("hotpot", [{**hotpot_row(1), "answer": " "}], "an empty question or answer"),
        ("squad", [{"context": "a b", "question": "c?", "answers": []}], "SQuAD 2.0 has some without"),
        ("squad", [{"context": "b", "question": "c?", "answers": [{"text": "b", "answer_start": 1}]}], "answer_start"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, rows, message):
    with pytest.raises(UserError, match=message):
        tasks.build(name, BYTES, 0, 1, 1, data=write(tmp_path / "bad.jsonl", rows, lines=True))


def test_bad_files(tmp_path, monkeypatch):
    for name in ("arc", "hotpot", "squad"):
        for options, message in (
            ({"data": "absent.json"}, "absent.json is neither a file nor a URL"),
            ({"question": "middle"}, f"{name} has no question='middle': use last or first"),
            ({"data": write(tmp_path / "x.json", {"version": 2})}, r"x.json is not .*(a list of rows|SQuAD's)"),
        ):
            with pytest.raises(UserError, match=message):
                tasks.build(name, BYTES, 0, 1, 1, **options)
    with pytest.raises(UserError, match="hotpot has no fill='all': use own or others"):
        tasks.build("hotpot", BYTES, 0, 1, 1, fill="all")
    with pytest.raises(UserError, match="n_val=0: 0 = all, but one file needs n_val of 1 or more"):
        build_squad(tmp_path, n_val=0)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it weren't installed
    with pytest.raises(UserError, match=r"a\.parquet is parquet: pip install pyarrow, or give the official JSON"):
        tasks.build("arc", BYTES, 0, 1, 1, data=str(tmp_path / "a.parquet"))


def columns(rows, *keys) -> dict:
    return {key: [row[key] for row in rows] for key in keys}


def as_on_hugging_face(name: str) -> list[dict]:
    """The tests' rows as the data sets' parquet files hold them: questions are flat, lists of pairs are columns."""
    if name == "arc":
        rows = [(arc_row(i), arc_row(i)["question"]) for i in range(20)]
        return [{**r, "question": q["stem"], "choices": columns(q["choices"], "text", "label")} for r, q in rows]
    if name == "squad":
        articles = [squad_article(i) for i in range(20)]
        paragraphs = [{"title": a["title"], **p} for a in articles for p in a["paragraphs"]]
        rows = [{**p, **p.pop("qas")[0]} for p in paragraphs]
        return [{**row, "answers": columns(row["answers"], "text", "answer_start")} for row in rows]
    pairs = lambda items, *keys: {key: [item[i] for item in items] for i, key in enumerate(keys)}
    rows = [hotpot_row(i) for i in range(20)]
    for row in rows:
        row["context"] = pairs(row["context"], "title", "sentences")
        row["supporting_facts"] = pairs(row["supporting_facts"], "title", "sent_id")
    return rows


@pytest.mark.parametrize("name", ["arc", "hotpot", "squad"])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_hugging_face_rows_are_the_official_ones(tmp_path, name, form):
    official = {
        "arc": lambda: write(tmp_path / "o.jsonl", [arc_row(i) for i in range(20)], lines=True),
        "hotpot": lambda: write(tmp_path / "o.json", [hotpot_row(i) for i in range(20)]),
        "squad": lambda: write(tmp_path / "o.json", {"data": [squad_article(i) for i in range(20)]}),
    }[name]()
    path = str(tmp_path / f"hf.{form}")
    if form == "parquet":
        pa = pytest.importorskip("pyarrow", reason="pyarrow reads parquet and isn't installed")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(as_on_hugging_face(name)), path)
    else:
        write(tmp_path / "hf.jsonl", as_on_hugging_face(name), lines=True)
    a, b = (tasks.build(name, BYTES, 0, 0, 6, data=data, max_prompt_tokens=3000) for data in (official, path))
    assert prompts(a.val) == prompts(b.val)
    assert prompts(a.train) == prompts(b.train)


# --- configs and python -m tasks
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_name_options_that_exist(name):
    found = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
    assert found["task"] == name.split("_")[0]
    assert set(found["task_args"]) <= set(view.signature(found["task"]))
    assert found["compare"]
    if name.endswith("qfirst"):  # a control differs in the order alone
        other = {"arc": "arc_optionsfirst", "hotpot": "hotpot_qafter_4096", "squad": "squad_qafter"}[found["task"]]
        twin = runpy.run_path(str(ROOT / "configs" / f"{other}.py"))
        assert found["task_args"] == {**twin["task_args"], "question": "first"} != twin["task_args"]
        rest = [{k: v for k, v in f.items() if k.islower() and k[0] != "_" and k != "task_args"} for f in (found, twin)]
        assert rest[0] == rest[1]


def test_view_lists_all_tasks(capsys):
    view.main([])
    listed = dict(line.split(None, 1) for line in capsys.readouterr().out.split("\n\n")[0].split("\n"))
    assert list(listed) == tasks.names()
    for name in tasks.names():
        view.main([name, "--help"])
        out = capsys.readouterr().out
        assert listed[name] in out
        parameters = list(inspect.signature(__import__(f"tasks.{name}", fromlist=["build"]).build).parameters)[4:]
        assert re.findall(r"(?m)^    (\w+)\b", out.split("and their defaults:")[1]) == parameters
        assert (ROOT / "tasks" / f"{name}.py").read_text().startswith('"""')


def test_view_of_generated_tasks(capsys):
    for name, option in (("infill", "--kind=rightrev"), ("retrieval", "--question=first")):
        view.main([name, "--tokenizer=bytes", option, "--n_train=30", "--n_val=20", "--n_show=2"])
        out = capsys.readouterr().out
        assert re.search(r"(?m)^examples +30 training, 20 validation", out)
        assert re.search(r"(?m)^gold answers +accuracy 1\.0000", out)
        assert re.search(r"(?m)^score +accuracy; levels: chance 0\.1000", out)
        assert out.count("\n--- ") == 2
        assert float(re.search(r"of the next row +accuracy (\S+),", out)[1]) < 0.5
    view.main(["infill", "--tokenizer=bytes", "--n_val=1", "--n_show=1"])
    assert re.search(r"\d\|M=________\|R=\d{8}\n=> '\d{8}', 8 tokens", capsys.readouterr().out)


def test_view_of_files(tmp_path, capsys):
    files = [f"--{key}={path}" for key, path in arc_files(tmp_path).items()]
    view.main(["arc", "--tokenizer=bytes", "--n_train=0", "--n_val=0", "--n_show=1", "--show_chars=60", *files])
    out = capsys.readouterr().out
    assert "300 training, 200 validation" in out
    assert re.search(r"gold answers +accuracy 1\.0000, accuracy_decoded 1\.0000", out)
    assert re.search(r"options 3 / 4 / 5", out)
    assert re.search(r"\[\.\.\. \d+ characters \.\.\.\]", out)
    config = tmp_path / "c.py"
    options = "tokenizer = 'bytes'\nn_train = 0\nn_val = 20\ntask_args = {'max_prompt_tokens': 400}\n"
    config.write_text(f"task = 'hotpot'\n{options}")
    data = write(tmp_path / "h.json", [hotpot_row(i) for i in range(80)])
    view.main([str(config), f"--data={data}", "--show_chars=0"])
    out = capsys.readouterr().out
    assert re.search(r"left out +\d+ with more to read than max_prompt_tokens=400\n", out)
    assert out.count("Question: Who is") == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sudoko"], "unknown task 'sudoko': choose one of arc,"),
        (["arc", "--order=first"], "--order=first: arc has no such option, it knows data, val_data, question"),
        (["arc", "question=first"], "arc has no such option"),
        (["retrieval", "--n_pairs=many"], "--n_pairs=many: it must be int like 64, got 'many'"),
        (["retrieval", "--n_val"], "--n_val: it must be int like 50, got 'True'"),
        (["absent.py"], "config file absent.py can't be read"),
    ],
)
def test_view_errors(argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        view.main(argv)


def test_view_is_a_command_without_torch():
    code = "import sys, tasks.__main__ as t; t.main(sys.argv[1:]); assert not {'torch', 'requests'} & {*sys.modules}"
    out = subprocess.run([sys.executable, "-c", code, "squad", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (0, "")
    assert "max_prompt_tokens: int = 512" in out.stdout
    out = subprocess.run([sys.executable, "-m", "tasks", "sudoko"], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stdout) == (1, "")
    assert out.stderr.startswith("error: unknown task 'sudoko': choose one of arc, hotpot, ")
