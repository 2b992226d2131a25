"""Question answering: official scores re-derived, bad files named, parquet rows and the official ones agree."""

import itertools
import random
import sys

import pytest

import tasks
from common.errors import UserError
from task_checks import BYTES, arc_row, build_squad, hotpot_row, prompts, squad_article, write
from tasks import _qa, hotpot


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
