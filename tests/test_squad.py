"""SQuAD: windows keep the answers, splits by article, scores against all gold answers."""

import re

import pytest

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer
from task_checks import BYTES, build_squad, gold, prompts, read, squad_article, write


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
