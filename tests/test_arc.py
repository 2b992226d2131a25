"""ARC: prompts say what the labels mean, levels, nothing shared by the sides."""

import re

import pytest

import tasks
from common.tokenizer import get_tokenizer
from task_checks import BYTES, arc_files, arc_row, gold, read, write


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
