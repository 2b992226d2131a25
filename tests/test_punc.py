"""Punctuation: what reading nothing gets, and texts as they were before spaces were put round their marks."""

import pytest

import tasks
from common.errors import UserError
from task_checks import BYTES, write
from tasks import punc
from tasks._text import detokenize, read_rows, row_text


def test_majority_knows_where_the_mark_stands(tmp_path):
    # "question? answer", as HotpotQA's texts are: the mark stands before a last word; 2 of 10 rows have one more
    rows = [
        {"question": f"Which town number {i} lies east of the old river bend at sunset?", "answer": "Jena"}
        for i in range(30)
    ]
    for row in rows[::5]:
        row["question"] = "Well, " + row["question"]
    data = write(tmp_path / "h.json", rows)
    task = tasks.build("punc", BYTES, 0, 15, 10, data=data, notes="none")
    marks = sum(e.meta["clean"].count(",") + e.meta["clean"].count("?") for e in task.val)
    assert task.levels["majority"] == pytest.approx(2 * 10 / (marks + 10))
    assert task.levels["copy input"] == 0.0


def test_majority_of_texts_without_marks_behind_words():
    e = tasks.Example("x", [], [], meta={"clean": "(A b", "transcript": "a b"})
    assert punc.levels_of([e], ["(A b"])["majority"] == 0.0


def test_no_space_before_marks():
    assert row_text({"question": "How many inhabitants ?", "answer": "9,984"}) == "How many inhabitants? 9,984"
    assert row_text({"text": "Wait ... for .NET , or :memory: !"}) == "Wait ... for .NET, or :memory:!"
    assert detokenize("On M \u2011 77 , 9 \u2013 3 .") == "On M\u201177, 9 \u2013 3."


def test_an_empty_file_is_no_list_of_rows(tmp_path):
    (tmp_path / "a.json").write_text("")
    with pytest.raises(UserError, match=r"a.json:1 is not JSON"):
        list(read_rows(str(tmp_path / "a.json")))
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": 1}\r\n\n{"text": 2}')  # byte order mark, CRLF, blank line
    assert list(read_rows(str(tmp_path / "a.jsonl"))) == [(1, {"text": 1}), (3, {"text": 2})]
    (tmp_path / "b.jsonl").write_bytes(b'{"text": 1}\n\xff')
    with pytest.raises(UserError, match=r"b.jsonl is not UTF-8 text \(byte 12\)"):
        list(read_rows(str(tmp_path / "b.jsonl")))
