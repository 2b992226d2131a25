"""HotpotQA: nothing needed is cut away, the order tells nothing, splits by content."""

import re

import pytest

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer
from task_checks import BYTES, gold, hotpot_row, prompts, read, write
from tasks import _qa


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
