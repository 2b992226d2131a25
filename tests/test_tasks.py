"""Tasks: same rows for the same seed, nothing shared by training and validation, answers that follow from prompts."""

import json
import re
import subprocess
import sys

import pytest

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer
from conftest import ROOT
from tasks import punc
from tasks._text import detokenize, read_texts, sentences

BYTES = get_tokenizer("bytes")
GENERATED = [("infill", {"kind": "struct"})]
GENERATED += [("retrieval", {"question": q, "n_pairs": 9}) for q in ("last", "first")]


def contents(rows):
    return [(e.id, e.prompt, e.answer, e.blanks) for e in rows]


def gold(rows):
    return [e.answer for e in rows]


# --- all tasks
def test_unknown_names_are_listed():
    with pytest.raises(UserError, match=r"unknown task 'chess': choose one of arc, .*infill, .*retrieval"):
        tasks.build("chess", BYTES, 0, 10, 10)
    with pytest.raises(UserError, match="infill has no option 'digits': it knows kind, n_digits"):
        tasks.build("infill", BYTES, 0, 10, 10, digits=3)


def test_tasks_do_without_torch(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n')
    code = f"""if True:
        import sys, tasks
        from common.tokenizer import get_tokenizer
        tok = get_tokenizer("bytes")
        for name in ("infill", "retrieval"):
            tasks.build(name, tok, 0, 10, 10)
        tasks.build("jsonl", tok, 0, 0, 1, data={str(tmp_path / "t.jsonl")!r})
        import tasks.punc
        assert "torch" not in sys.modules, "a task imports torch"
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- generated tasks
@pytest.mark.parametrize(("name", "options"), GENERATED)
def test_generated_rows(name, options):
    a, b = (tasks.build(name, BYTES, 7, 300, 200, **options) for _ in range(2))
    last, train = a.train[299], contents(a.train)  # a row is the same whatever was asked for before
    assert contents([last])[0] == train[299] == contents([a.train[-1]])[0]
    assert train == contents(b.train)
    assert contents(a.val) == contents(b.val)
    assert train != contents(tasks.build(name, BYTES, 8, 300, 200, **options).train)
    ids = [e.id for e in a.val]
    assert len(ids) == len(set(ids)) == 200
    assert not {e.id for e in a.train} & set(ids)
    assert not {tuple(e.prompt + e.answer) for e in a.train} & {tuple(e.prompt + e.answer) for e in a.val}
    # not even the training rows of another seed
    assert not {e.id for e in tasks.build(name, BYTES, 8, 2000, 1, **options).train} & set(ids)
    with pytest.raises(IndexError):
        a.train[300]
    assert a.truncate is None


@pytest.mark.parametrize(("name", "options"), GENERATED)
def test_generated_scores(name, options):
    task = tasks.build(name, BYTES, 0, 10, 400, **options)
    rows = task.val
    assert task.score(rows, gold(rows)) == {"accuracy": 1.0, "exact": 1.0}
    assert all(len(e.answer) <= task.max_new_tokens for e in rows)
    cells = sum(len(e.answer) for e in rows)
    # another row's answer is a guess; 4 standard deviations of a mean of `cells` guesses
    rolled = task.score(rows, gold(rows[1:] + rows[:1]))
    assert abs(rolled["accuracy"] - task.levels["chance"]) < 4 * (0.09 / cells) ** 0.5
    short = task.score(rows, [e.answer[:-1] for e in rows])  # decoding stopped too early
    assert short == {"accuracy": (cells - len(rows)) / cells, "exact": 0.0}
    assert task.score(rows, [[*e.answer, 65] for e in rows])["exact"] == 0.0


def test_too_few_contents():
    with pytest.raises(UserError, match=r"only about .* n_val=50"):
        tasks.build("infill", BYTES, 0, 10, 50, n_digits=1)
    with pytest.raises(UserError, match="at least 1"):
        tasks.build("infill", BYTES, 0, 0, 10)


@pytest.mark.parametrize("question", ["last", "first"])
def test_retrieval_is_solvable_from_its_prompt(question):
    tok = get_tokenizer("chars:0123456789abcdefghijklmnopqrstuvwxyz=;?#")
    task = tasks.build("retrieval", tok, 3, 20, 20, question=question)
    for e in [*task.train, *task.val]:
        text = tok.decode(e.prompt)
        pairs, (asked,) = re.findall(r"([a-z]{2})=(\d{4});", text), re.findall(r"\?([a-z]+)", text)
        assert len(dict(pairs)) == len(pairs) == 64
        assert dict(pairs)[asked] == tok.decode(e.answer)
        assert text.startswith("?") == (question == "first")
        assert text.endswith("=")


@pytest.mark.parametrize(
    ("name", "tokenizer", "options", "message"),
    [
        ("infill", "chars:0123456789LMR=|#", {}, "needs a mask token"),
        ("infill", "chars:012345678LMR=|_#", {}, "no single token for '9'"),
        ("infill", "bytes", {"kind": "leftcopy"}, "no kind 'leftcopy'"),
        ("infill", "bytes", {"n_digits": 0}, "nothing to fill in"),
        ("retrieval", "chars:0123456789=;?#", {}, "no single token for 'a'"),
        ("retrieval", "bytes", {"question": "middle"}, "last or first"),
        ("retrieval", "bytes", {"key_len": 1}, "n_pairs=64 different keys"),
        ("retrieval", "bytes", {"value_len": 0}, "1 digit or more"),
    ],
)
def test_generated_task_errors(name, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        tasks.build(name, get_tokenizer(tokenizer), 0, 10, 10, **options)


# --- punc
def prose(n: int) -> list[str]:
    """Different sentences of the right size, with marks of several kinds."""
    word = ["Amsterdam", "Bologna", "Cordoba", "Dresden", "Esbjerg", "Florence", "Granada", "Hamburg", "Iseo", "Jena"]
    return [
        f'From {word[i % 10]}, "route {i}" leads to {word[i // 10 % 10]} (on foot): who walks it today?'
        for i in range(n)
    ]


def text_file(tmp_path, rows: list[str]) -> str:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(tmp_path / "t.jsonl")


def build_punc(n_train, n_val, tok=BYTES, seed=0, **options):
    return tasks.build("punc", tok, seed, n_train, n_val, **{"source": "file", "max_prompt_tokens": 2000} | options)


def test_punc_rows(tmp_path):
    data = text_file(tmp_path, prose(200))
    task, again = (build_punc(100, 30, data=data) for _ in range(2))
    assert contents(task.train) == contents(again.train)
    assert contents(task.val) == contents(again.val)
    assert {e.id for e in task.val} != {e.id for e in build_punc(100, 30, data=data, seed=1).val}
    assert (len(task.train), len(task.val)) == (100, 30)
    assert not {e.id for e in task.train} & {e.id for e in task.val}
    assert task.score(task.val, gold(task.val))["exact"] == 1.0
    val_texts = [e.meta["clean"] for e in task.val]
    for e in [*task.train, *task.val]:
        prompt, answer = BYTES.decode(e.prompt), BYTES.decode(e.answer)
        assert len(e.prompt) == 2000  # full of notes
        assert answer == " " + e.meta["clean"]
        assert answer.strip() not in prompt
        assert prompt.startswith("Notes:\n- From ")
        assert prompt.endswith(f"\n\nTranscript:\n{punc.transcript(answer)}\n\n{punc.REQUEST}\nAnswer:")
        assert not any(text in prompt for text in val_texts)


def test_punc_notes_never_give_the_answer_away(tmp_path):
    # every other text contains its neighbour, in another case and with other marks
    rows = [
        f"He said {t.upper().replace(',', ';')} And she, too!" if i % 2 else t
        for i, t in enumerate(t for t in prose(80) for _ in "ab")
    ]
    task = build_punc(0, 20, data=text_file(tmp_path, rows), max_chars=300, max_prompt_tokens=100_000)
    assert len(task.train) == 140
    in_notes = 0
    for e in [*task.train, *task.val]:
        notes = [punc.transcript(x) for x in BYTES.decode(e.prompt).split("\n\n")[0].split("\n- ")[1:]]
        assert not [x for x in notes if e.meta["transcript"] in x or x in e.meta["transcript"]]
        in_notes += len(notes)
    assert in_notes > 159 * 78  # and all other notes are there


def test_punc_orders_and_no_notes(tmp_path):
    data = text_file(tmp_path, prose(60))
    first = build_punc(20, 10, data=data, order="instruction_first").val[0]
    text = BYTES.decode(first.prompt)
    assert text.startswith(f"Transcript:\n{first.meta['transcript']}\n\n{punc.REQUEST}\n\nNotes:\n- ")
    assert text.endswith("\n\nAnswer:")
    bare = build_punc(40, 20, data=data, notes="none").val[0]
    assert BYTES.decode(bare.prompt) == f"Transcript:\n{bare.meta['transcript']}\n\n{punc.REQUEST}\nAnswer:"


def test_punc_says_which_filter_removed_how_many(tmp_path):
    short, long, bare = "Too short.", "Far too long, " * 30, "No mark is anywhere in this text that is long enough"
    digits, unknown = (
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18",
        prose(1)[0].replace("today", "<unk>"),
    )
    rows = prose(20) + 2 * [short] + 3 * [long] + 4 * [bare] + [digits, unknown] + [x.upper() for x in prose(5)]
    data = text_file(tmp_path, rows)
    with pytest.raises(UserError) as e:
        build_punc(100, 5, data=data)
    for part in (
        "built only 20 of 105 examples from the 36 texts of",
        "2 shorter than min_chars=48",
        "3 longer than max_chars=220",
        "4 without punctuation",
        "1 with few letters",
        "1 with <unk>",
        "5 repeated",
    ):
        assert part in str(e.value)
    for limit in ("max_answer_tokens=60", "max_prompt_tokens=150", "min_prompt_tokens=1999"):
        name, value = limit.split("=")
        with pytest.raises(UserError, match=rf"0 of 6 examples .* \d+ .* {limit}"):
            build_punc(1, 5, data=data, **{name: int(value)})
    with pytest.raises(UserError, match="10 are notes"):
        build_punc(1, 15, data=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "absent.txt"}, "absent.txt can't be read"),
        ({"data": "latin1.txt"}, "not UTF-8 text .byte 3."),
        ({"data": "bad.jsonl"}, "bad.jsonl:2 is not JSON"),
        ({"data": "dict.json"}, "not a list of rows"),
        ({"data": ""}, "source=file needs a file"),
        ({"data": "", "source": "wikitext"}, "source=wikitext needs a file"),
        ({"source": "web"}, "use one of hotpot, wikitext, file"),
        ({"notes": "some"}, "use one of fill, none"),
        ({"order": "random"}, "use one of notes_first"),
    ],
)
def test_punc_errors(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("Café".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    (tmp_path / "dict.json").write_text('{"text": "a"}')
    with pytest.raises(UserError, match=message):
        build_punc(10, 10, **options)


def test_punc_scores_by_hand():
    clean = ['Well, said "Ann", is Bob home?']
    assert punc.score_texts(clean, clean)["exact"] == 1.0
    # 5 marks, all but a comma there, one more put at the wrong word: 2 * 4 / (5 + 5)
    wrong = punc.score_texts(clean, ['Well, said "Ann" is Bob, home?'])
    assert (wrong["punct_f1"], wrong["f1 ,"], wrong['f1 "'], wrong["f1 ?"]) == (0.8, 0.5, 1.0, 1.0)
    assert (wrong["case_accuracy"], wrong["word_accuracy"], wrong["exact"]) == (1.0, 1.0, 0.0)
    # an extra word at the start costs nothing behind it
    extra = punc.score_texts(clean, ['Oh Well, said "Ann", is Bob home?'])
    assert (extra["punct_f1"], extra["word_accuracy"], extra["exact"]) == (1.0, 1.0, 0.0)
    # marks at words that are not the text's are wrong: 2 * 1 / (5 + 2)
    other = punc.score_texts(clean, ["Nobody, is there home?"])
    assert other["punct_f1"] == pytest.approx(2 / 7)
    assert (other["word_accuracy"], other["case_accuracy"]) == (2 / 6, 1.0)
    lower = punc.score_texts(clean, ["well said ann is bob home"])
    assert (lower["punct_f1"], lower["case_accuracy"], lower["word_accuracy"]) == (0.0, 0.5, 1.0)
    assert punc.score_texts(clean, [""])["punct_f1"] == 0.0


def test_punc_levels_and_shuffled_gold(tmp_path):
    task = build_punc(40, 30, data=text_file(tmp_path, prose(100)))
    assert (
        task.levels["copy input"]
        == task.score(task.val, [list(e.meta["transcript"].encode()) for e in task.val])["punct_f1"]
        == 0
    )
    # 7 marks, one of them the last: 2 * 1 / (7 + 1)
    assert task.levels["majority"] == 0.25
    assert task.score(task.val, gold(task.val[1:] + task.val[:1]))["exact"] == 0.0
    assert task.max_new_tokens >= max(len(e.answer) for e in task.val)


def test_transcript_keeps_what_is_inside_a_word():
    assert (
        punc.transcript("It's 3.5 (or so) -- \"U.S.\" size, don't worry ... OK?")
        == "it's 3.5 or so -- u.s size don't worry ok"
    )
    assert punc.words("Yes ... no!") == [("", "Yes", "..."), ("", "no", "!")]


def test_reading_a_book(tmp_path):
    # as Project Gutenberg sends them: byte order mark, CRLF, wrapped lines, words of its own around the book
    head, tail = (
        "Title: A Walk, of Sorts\r\n\r\n*** START OF THE EBOOK ***\r\n\r\n",
        "*** END OF THE EBOOK ***\r\n\r\nLicence.",
    )
    body = "\r\n\r\n".join(f"{row} She was\r\nlate." for row in prose(3))
    (tmp_path / "book.txt").write_bytes((head + body + "\r\n" + tail).encode("utf-8-sig"))
    texts = list(read_texts(str(tmp_path / "book.txt"), False, 48))
    assert texts == [piece for row in prose(3) for piece in (row, "She was late.")]


def test_reading_prose_and_wikitext():
    line = 'It is " red @-@ tipped " , 0 @.@ 7 ( 9 in ) of the city \'s 1 @,@ 000 .'
    assert detokenize(line) == 'It is "red-tipped", 0.7 (9 in) of the city\'s 1,000.'
    pieces = sentences(['Mr. Holmes came.\nHe saw J. Watson. "Go!" he said. Why? Nobody knows.'], 12)
    assert list(pieces) == ["Mr. Holmes came.", "He saw J. Watson.", '"Go!" he said.', "Why? Nobody knows."]


@pytest.mark.parametrize(
    ("name", "source", "least"),
    [
        ("text/sherlock.txt", "file", 4000),
        ("text/wiki.valid.tokens", "wikitext", 2000),
        ("hotpotqa/hotpot_distractor_literaptor100.json", "hotpot", 95),
        ("hotpotqa/hotpot_dev_distractor_v1.first.json", "hotpot", 50),
    ],
)
def test_punc_on_real_text(data, name, source, least):
    options = {"source": source, "data": str(data(name)), "max_prompt_tokens": 4096, "max_answer_tokens": 256}
    assert least <= len(build_punc(0, 20, notes="none", **options).train) + 20
    task = build_punc(30, 20, **options)
    assert task.score(task.val, gold(task.val))["punct_f1"] == 1.0
    assert task.levels["copy input"] == 0.0
    assert task.levels["majority"] < 0.7
    for e in [*task.train, *task.val]:
        prompt = BYTES.decode(e.prompt)
        assert len(e.prompt) <= 4096
        assert "<unk>" not in prompt
        assert "Gutenberg" not in prompt
        assert e.meta["clean"] not in prompt
        assert e.meta["transcript"] in prompt
        assert 48 <= len(e.meta["clean"]) <= 220


# --- jsonl
def rows_file(path, rows) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def pairs(n, start=0):
    return [{"prompt": f"Say {i}:", "answer": f" {i}"} for i in range(start, start + n)]


def test_jsonl_both_forms(tmp_path):
    chat = "User: Hi!\n\nAssistant: Hello.\n\nUser: 1+1?\n\nAssistant: It is 2.\n"
    data = rows_file(tmp_path / "a.jsonl", [{"text": chat}, "", {"prompt": "Grüße: ", "answer": "¡olé!"}])
    e, f = sorted(tasks.build("jsonl", BYTES, 0, 0, 2, val_data=data).val, key=lambda e: -len(e.prompt))
    assert BYTES.decode(e.prompt) == chat[: -len(" It is 2.\n")]
    assert BYTES.decode(e.answer) == " It is 2.\n"
    assert (BYTES.decode(f.prompt), BYTES.decode(f.answer)) == ("Grüße: ", "¡olé!")
    other = rows_file(tmp_path / "b.jsonl", ['\ufeff{"q": "x", "a": "y"}'])  # some editors write a byte order mark
    (g,) = tasks.build("jsonl", BYTES, 0, 0, 1, val_data=other, prompt_key="q", answer_key="a").val
    assert (g.prompt, g.answer) == ([120], [121])


def test_jsonl_split(tmp_path, capsys):
    twice = [{"prompt": "say  3:", "answer": "3 "}, {"prompt": "SAY 4:", "answer": " 4"}]
    data = rows_file(tmp_path / "a.jsonl", pairs(50) + twice)
    task = tasks.build("jsonl", BYTES, 0, 0, 12, data=data)
    assert "dropped 2 of 52 rows" in capsys.readouterr().err
    assert (len(task.val), len(task.train)) == (12, 38)
    assert not {e.meta["prompt"] for e in task.train} & {e.meta["prompt"] for e in task.val}
    assert contents(task.val) == contents(tasks.build("jsonl", BYTES, 0, 5, 12, data=data).val)
    assert len(tasks.build("jsonl", BYTES, 0, 5, 12, data=data).train) == 5
    assert len(tasks.build("jsonl", BYTES, 0, 10**6, 12, data=data).train) == 38
    # a row more moves at most one of the others to the other side
    more = tasks.build("jsonl", BYTES, 0, 0, 12, data=rows_file(tmp_path / "b.jsonl", pairs(51)))
    assert len({e.id for e in more.val} - {e.id for e in task.val}) <= 1
    assert [e.id for e in tasks.build("jsonl", BYTES, 1, 0, 12, data=data).val] != [e.id for e in task.val]


def test_jsonl_val_data_is_taken_as_it_is(tmp_path):
    data, val = rows_file(tmp_path / "a.jsonl", pairs(50)), rows_file(tmp_path / "v.jsonl", pairs(8, 45) + pairs(1, 47))
    task = tasks.build("jsonl", BYTES, 0, 0, 0, data=data, val_data=val)
    assert [e.meta["answer"] for e in task.val] == [f" {i}" for i in (*range(45, 53), 47)]
    assert len(task.train) == 45  # 45 to 49 are in val
    assert [e.meta["answer"] for e in tasks.build("jsonl", BYTES, 0, 0, 2, val_data=val).val] == [" 45", " 46"]


def test_jsonl_scores(tmp_path):
    data = rows_file(tmp_path / "a.jsonl", [{"prompt": str(i), "answer": "yes" if i % 4 else "no"} for i in range(40)])
    task = tasks.build("jsonl", BYTES, 0, 0, 20, data=data, truncate="left")
    assert task.score(task.val, gold(task.val)) == {"exact": 1.0, "char_accuracy": 1.0}
    yes = sum(e.meta["answer"] == "yes" for e in task.val)
    assert task.levels["majority"] == yes / 20
    assert task.score(task.val, [list(b" yes\n")] * 20)["exact"] == yes / 20
    half = task.score(task.val, [list(b"ye")] * 20)  # 2 of 3 characters, or 0 of 2
    assert half == {"exact": 0.0, "char_accuracy": pytest.approx(2 * yes / (40 + yes))}
    assert task.truncate == "left"
    assert tasks.build("jsonl", BYTES, 0, 0, 20, data=data).truncate is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"a.jsonl:3 has no 'answer'"),
        ({"answer": "a"}, r"a.jsonl:3 has no 'prompt'"),
        ({"prompt": "a", "answer": 3}, r"a.jsonl:3 has 'answer' of type int"),
        ({"prompt": "a", "answer": " \n"}, r"a.jsonl:3 has an empty answer"),
        ({"prompt": "", "answer": "a"}, r"a.jsonl:3 has an empty prompt"),
        ({"prompt": "a", "answer": "\0"}, r"a.jsonl:3 has an answer that is only end-of-text"),
        ({"text": "Once upon a time"}, r"a.jsonl:3 has a \"text\" that is not of the form"),
        ({"text": "User: a\n\nAssistant:"}, r"a.jsonl:3 has an empty answer"),
        ('{"prompt": "a", ', r"a.jsonl:3 is not JSON"),
        ("[1, 2]", r"a.jsonl:3 is not an object"),
    ],
)
def test_jsonl_bad_rows(tmp_path, row, message):
    data = rows_file(tmp_path / "a.jsonl", [*pairs(1), "", row, *pairs(3, 1)])
    with pytest.raises(UserError, match=message):
        tasks.build("jsonl", BYTES, 0, 0, 1, data=data)


def test_jsonl_errors(tmp_path):
    data = rows_file(tmp_path / "a.jsonl", pairs(5))
    digits = get_tokenizer("chars:0123456789,#")
    for options, n_val, tok, message in (
        ({}, 1, BYTES, "needs a file"),
        ({"data": data, "truncate": "middle"}, 1, BYTES, "error, left or right"),
        ({"data": data}, 6, BYTES, "has 5 rows, n_val=6"),
        ({"data": data}, 0, BYTES, "has 5 rows, n_val=0"),
        ({"data": data}, 5, BYTES, "no row left to train on"),
        ({"data": data}, 1, digits, "a.jsonl:1: character 'S' is not in the alphabet"),
        ({"data": rows_file(tmp_path / "e.jsonl", [""])}, 1, BYTES, "has no rows"),
    ):
        with pytest.raises(UserError, match=message):
            tasks.build("jsonl", tok, 0, 0, n_val, **options)


def test_jsonl_reads_the_reverse_evaluation(data):
    # its answers end in the tokenizer's end-of-text, which the trainer will append: 18900 targets with it
    tok, path = get_tokenizer("chars:0123456789,#"), str(data("rwkv7-reverse/reverse_eval_seed42_600.jsonl"))
    val = tasks.build("jsonl", tok, 0, 0, 600, val_data=path, answer_key="target").val
    assert len(val) == 600
    assert sum(len(e.answer) + 1 for e in val) == 18900
    assert all(tok.decode(e.answer) == tok.decode(e.prompt)[-2::-1] for e in val)
