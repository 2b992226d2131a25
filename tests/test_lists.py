"""Lists: answers follow from prompts, levels are those of guessing."""

import re

import numpy as np
import pytest

import tasks
from common.errors import UserError
from task_checks import BYTES, check_rows, gold
from tasks import lists


@pytest.mark.parametrize("question", ["last", "first"])
@pytest.mark.parametrize("kind", lists.KINDS)
def test_lists(kind, question):
    task = check_rows(lambda seed: tasks.build("lists", BYTES, seed, 20, 30, kind=kind, question=question))
    for e in [*task.train, *task.val]:
        text = BYTES.decode(e.prompt)
        assert text.endswith("=")
        pattern = r"([^?;]+);\?([^;]*)=" if question == "last" else r"\?([^;]*);([^?;]+)="
        items, asked = re.fullmatch(pattern, text).groups()[:: 1 if question == "last" else -1]
        items = items.split(",")
        assert len(set(items)) == len(items) == {"nameindex": 64, "middlematch": 96, "kvsort": 7}[kind]
        if kind == "nameindex":
            answer = items[int(asked, 36)]
        elif kind == "middlematch":
            left, right = asked.split(",")
            (answer,) = [b for a, b, c in zip(items, items[1:], items[2:], strict=False) if (a, c) == (left, right)]
        else:
            answer = ",".join(value for _, value in sorted(item.split(":") for item in items))
        assert BYTES.decode(e.answer) == answer


@pytest.mark.parametrize("kind", lists.KINDS)
def test_lists_levels(kind):
    task = tasks.build("lists", BYTES, 0, 10, 250, kind=kind)
    assert task.score(task.val, gold(task.val)) == {"accuracy": 1.0, "exact": 1.0}
    chance, item = task.levels.values()
    n = sum(len(e.answer) for e in task.val)
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))["accuracy"]
    assert abs(rolled - chance) < 4 * (chance * (1 - chance) / n) ** 0.5
    random, picks = np.random.default_rng(0), []
    for e in task.val:  # an item of the list that fits, at random
        items, asked = BYTES.decode(e.prompt)[:-1].split(";?")
        items = [x.split(":")[-1] for x in items.split(",")]
        if kind == "kvsort":
            picks.append(",".join(random.choice(items, len(items))))
        else:
            items = [x for x in items if x not in asked.split(",")] if kind == "middlematch" else items
            picks.append(str(random.choice(items)))
    picked = task.score(task.val, [BYTES.encode(x) for x in picks])["accuracy"]
    assert abs(picked - item) < 4 * (item * (1 - item) / n * 3) ** 0.5  # characters of an item come together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sort"}, "no kind 'sort': choose one of nameindex"),
        ({"question": "middle"}, "last or first"),
        ({"kind": "middlematch", "n_items": 2}, "use 3 to 1296"),
        ({"kind": "kvsort", "n_items": 101}, "use 2 to 100"),
    ],
)
def test_lists_errors(options, message):
    with pytest.raises(UserError, match=message):
        tasks.build("lists", BYTES, 0, 10, 10, **options)
