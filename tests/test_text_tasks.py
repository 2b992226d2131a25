"""Masked text: windows, masks, levels and tokenizers."""

import numpy as np
import pytest

import tasks
from common.batches import fingerprint
from common.errors import UserError
from common.tokenizer import get_tokenizer
from task_checks import BYTES, check_split, gold


def build_text(path, n_train=50, n_val=20, seed=0, tok=BYTES, **options):
    return tasks.build("text", tok, seed, n_train, n_val, data=str(path), **options)


@pytest.mark.parametrize("name", ["text/sherlock.txt", "text/wiki.valid.tokens"])
@pytest.mark.parametrize("mask", ["random", "prefix", "span"])
def test_text_rows(data, name, mask):
    path = data(name)
    task, again, other = (build_text(path, seed=seed, mask=mask, span=20, length=64) for seed in (3, 3, 4))
    assert fingerprint([*task.train, *task.val]) == fingerprint([*again.train, *again.val])
    assert {e.id for e in task.val} != {e.id for e in other.val}
    check_split(task, other)
    every = build_text(path, n_train=600, n_val=0, mask=mask, span=20, length=64)
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").encode()
    inside = {i for e in every.val for i in range(e.meta["start"], e.meta["start"] + 64)}
    for e in [*every.train, *every.val]:
        start = e.meta["start"]
        whole = list(e.prompt)
        for i, t in zip(e.blanks, e.answer, strict=True):
            whole[i] = t
        assert bytes(whole) == text[start : start + 64]
    assert not inside & {i for e in every.train for i in range(e.meta["start"], e.meta["start"] + 64)}
    assert 0.08 < len(every.val) * 64 / len(text) < 0.12
    fixed = {"prefix": list(range(32)), "span": list(range(22, 42))}.get(mask)
    assert all(e.blanks == fixed for e in every.train) if fixed else True
    if mask == "random":  # ratios are uniform: each tenth of them as often as the others
        shares = np.histogram([len(e.blanks) / 64 for e in every.train], 10, (0, 1))[0]
        assert min(len(e.blanks) for e in every.train) == 1
        assert (abs(shares - 60) < 4 * 54**0.5).all()


def test_text_levels_and_scores(data):
    task = build_text(data("text/sherlock.txt"), n_val=200)
    assert task.score(task.val, gold(task.val)) == {"accuracy": 1.0, "exact": 1.0}
    spaces = task.score(task.val, [[32] * len(e.blanks) for e in task.val])["accuracy"]
    assert task.levels == {"chance": 1 / 256, "majority": spaces}
    assert 0.15 < spaces < 0.2


def test_text_with_other_tokenizers(data, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"{i * i % 997} " for i in range(3000)))
    chars = get_tokenizer("chars:0123456789 _#")
    e = build_text(path, tok=chars, length=32).val[0]
    assert [i for i, t in enumerate(e.prompt) if t == chars.mask_id] == e.blanks
    world = get_tokenizer("world", data("rwkv-vocab/rwkv_vocab_v20230424.txt"))
    task = build_text(data("text/sherlock.txt"), tok=world, mask="span", span=4, length=16)
    assert all(e.prompt.count(world.mask_id) == 4 for e in task.val)
    with pytest.raises(UserError, match=r"character .* is not in the alphabet"):
        build_text(data("text/sherlock.txt"), tok=chars)
    path.write_text("12_4 " * 3000)
    with pytest.raises(UserError, match="has the mask token"):
        build_text(path, tok=chars)


def test_text_that_repeats_itself(tmp_path):
    # five different windows stand everywhere, at places of blocks and at others
    (tmp_path / "t.txt").write_text("1234 " * 3000)
    task = build_text(tmp_path / "t.txt", tok=get_tokenizer("chars:0123456789 _#"), length=32, n_val=1)
    assert 1 < len({e.id for e in task.train} | {task.val[0].id}) <= 5
    assert task.val[0].id not in {e.id for e in task.train}
    (tmp_path / "t.txt").write_text("1" * 3000)
    with pytest.raises(UserError, match="or give more text"):
        build_text(tmp_path / "t.txt", n_val=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "suffix"}, "use one of random, prefix, span"),
        ({"length": 1}, "length of 2 or more"),
        ({"mask": "span", "span": 65, "length": 64}, "span of 1 to length"),
        ({"n_train": 0}, "use 1 or more"),
        ({"n_val": 99}, r"gave \d+ validation blocks of length=128 \(n_val=99\)"),
        ({"length": 90_000}, "gave 0 validation blocks"),
        ({"tok": get_tokenizer("chars:ab#")}, "needs a mask token"),
    ],
)
def test_text_errors(tmp_path, options, message):
    (tmp_path / "t.txt").write_text("".join(f"{i * i % 997} " for i in range(10_000)))
    with pytest.raises(UserError, match=message):
        build_text(tmp_path / "t.txt", **options)
    with pytest.raises(UserError, match="needs a file"):
        build_text("")
