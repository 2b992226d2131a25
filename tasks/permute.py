"""Put items into an order that stands behind the blanks: all of it has to come from the right, and no item twice.

    kvsort     M=____|R=O=k3x...;7:p;3:a;k:0;q:q     M is the keys (k37q) in the order in which they stand in O,
                                                     or with keys_only=False the pairs: M=_:_;_:_;_:_;_:_|R=...
    permfill   M=_3__|R=O=k3x...;73kq                the same with items instead of pairs, some of M shown as anchors

Keys and items are different characters of 0-9a-z, O is an order of all 36 of them, values are any of the 36. Numbers of
items are drawn for each training row from n_min to n_max; validation rows have n_test, which may lie outside: the same
symbols at a length that was never trained. (The published padding P= serves no purpose here, and its separators in M
are never blank.) Tokenizer, e.g.: "chars:0123456789abcdefghijklmnopqrstuvwxyzMRO=|;:_#", permfill does without the ":".

Decoding by assignment: meta["choices"] are the token ids of which each of the blanks number meta["slots"] takes
another one (indices into Example.blanks; the other blanks, values, are free).
"""

import itertools
import math
from collections import defaultdict

from common.errors import UserError
from tasks import Example, Task
from tasks._common import cell_scores, char_ids, generate
from tasks._infill import example

ITEMS = "0123456789abcdefghijklmnopqrstuvwxyz"


def draw_row(random, kind: str, n: int, anchors: int, keys_only: bool) -> tuple[tuple[str, ...], str, str, list[int]]:
    """-> shown, blank, shown, ..., shown; O; M's keys; M's places that are blank."""
    order = "".join(ITEMS[i] for i in random.permutation(len(ITEMS)))
    chosen = random.choice(len(ITEMS), n, replace=False).tolist()  # places in O
    values = "".join(ITEMS[i] for i in random.integers(0, len(ITEMS), n))
    shown = set(random.choice(n, anchors, replace=False).tolist())
    row, ranked = ["M="], sorted(zip(chosen, values, strict=True))
    for i, (place, value) in enumerate(ranked):
        cells = [("", order[place])] if keys_only else [(";" if i else "", order[place]), (":", value)]
        for separator, cell in cells:
            row[-1] += separator
            if i in shown:
                row[-1] += cell
            else:
                row += [cell, ""]
    if kind == "kvsort":
        given = ";".join(f"{order[place]}:{value}" for place, value in zip(chosen, values, strict=True))
    else:
        given = "".join(order[place] for place in chosen)
    row[-1] += f"|R=O={order};{given}"
    return tuple(row), order, "".join(order[place] for place, _ in ranked), [i for i in range(n) if i not in shown]


def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
    """exact: share of rows without an error; accuracy: of blanks; key_valid: of rows whose keys are those that were
    left, each once; key_order: whose keys, anchors among them, stand as in O; pair_accuracy: share of pairs (of keys,
    if M has only keys) right at their place. With several lengths exact of each as well."""
    valid = ordered = right = pairs = 0
    exact = defaultdict(list)
    for e, ids in zip(examples, predictions, strict=True):
        got, slots, order = [*ids, *[-1] * len(e.blanks)], e.meta["slots"], e.meta["order"]
        keys = dict(zip(e.meta["open"], (got[i] for i in slots), strict=True))
        filled = [keys.get(i, key) for i, key in enumerate(e.meta["keys"])]
        places = [order.index(key) if key in order else -1 for key in filled]
        valid += sorted(keys.values()) == e.meta["choices"]
        ordered += places[0] >= 0 and all(a < b for a, b in itertools.pairwise(places))
        step = len(e.blanks) // len(slots)
        right += sum(got[i : i + step] == e.answer[i : i + step] for i in slots)
        pairs += len(slots)
        exact[len(places)].append(list(ids) == e.answer)
    cells, n = cell_scores(examples, predictions), len(examples)
    result = {"exact": cells["exact"], "accuracy": cells["accuracy"], "key_valid": valid / n, "key_order": ordered / n}
    result["pair_accuracy"] = right / pairs
    each = {f"exact n={length}": sum(of) / len(of) for length, of in sorted(exact.items())}
    return result | (each if len(each) > 1 else {})


def levels_of(val: list[Example], metric: str) -> dict[str, float]:
    """Expected `metric` of random characters, and of the keys that are left in random order (with random values).

    Causal ceiling: all arrangements are equally likely, and a reader knows only the anchors to the left of a blank: its
    key is none of them. (Of exact with anchors it is an upper bound: guesses may coincide with anchors on the right.)
    """
    size, each = len(ITEMS), []
    for e in val:
        n, k = len(e.meta["keys"]), len(e.meta["slots"])
        values = len(e.blanks) - k
        if metric == "exact":
            right = size**-values  # all values
            each.append((right * size**-k, right / math.factorial(k), right / math.perm(size - n + k, k)))
        else:  # blanks that are right
            known = sum(1 / (size - i + j) for j, i in enumerate(e.meta["open"]))  # i - j anchors stand to the left
            each.append(((k + values) / size, 1 + values / size, known + values / size))
    total = len(val) if metric == "exact" else sum(len(e.blanks) for e in val)
    names = ("chance", "keys in random order", "causal ceiling")
    return {name: sum(column) / total for name, column in zip(names, zip(*each, strict=True), strict=True)}


def build(
    tok,
    seed: int,
    n_train: int,
    n_val: int,
    kind: str = "kvsort",  # kvsort | permfill
    n_min: int = 0,  # fewest items of training rows; 0 = as published: 20 (kvsort), 24 (permfill)
    n_max: int = 0,  # most items of training rows; 0 = n_min
    n_test: int | list[int] = 0,  # items of validation rows, or a list of several: as many rows of each; 0 = n_max
    anchors: int = 0,  # items of M that are shown, at random places
    keys_only: bool = True,  # kvsort: M is keys alone, else pairs; permfill has no values
    metric: str = "exact",  # what a report quotes: exact | accuracy
) -> Task:
    if kind not in ("kvsort", "permfill"):
        raise UserError(f"permute has no kind {kind!r}: use kvsort or permfill")
    if metric not in ("exact", "accuracy"):
        raise UserError(f"permute has no metric={metric!r}: use exact or accuracy")
    if kind == "permfill" and not keys_only:
        raise UserError("permute kind=permfill has no values: leave keys_only=True, or use kvsort")
    low = n_min or {"kvsort": 20, "permfill": 24}[kind]
    high = n_max or low
    lengths = [n_test or high] if isinstance(n_test, int) else sorted(set(n_test))
    if not 1 <= low <= high or not lengths or not all(1 <= n <= 36 for n in (high, *lengths)):
        raise UserError(f"permute with n_min={n_min}, n_max={n_max}, n_test={n_test}: 1 to 36 items, n_min <= n_max")
    if not 0 <= anchors < min(low, *lengths):
        raise UserError(f"permute with anchors={anchors}: use 0 to {min(low, *lengths) - 1}, so that a blank is left")
    if n_val < len(lengths):
        raise UserError(f"permute with n_val={n_val}: use {len(lengths)} or more, a row of each length at least")
    alphabet = ITEMS + ("MRO=|;:" if kind == "kvsort" else "MRO=|;")
    if tok.mask_id is None:
        raise UserError(f"permute needs a mask token, tokenizer {tok.name!r} has none: use 'chars:{alphabet}_#'")
    ids = char_ids(tok, alphabet)

    def draw(random, n: int) -> Example:
        row, order, keys, places = draw_row(random, kind, n, anchors, keys_only)
        meta = {"order": [ids[c] for c in order], "keys": [ids[c] for c in keys], "open": places}
        meta["choices"] = sorted(meta["keys"][i] for i in places)
        meta["slots"] = list(range(0, len(row) // 2, 1 if keys_only else 2))
        return example(ids, tok.mask_id, row, **meta)

    train, _ = generate(lambda random: draw(random, int(random.integers(low, high + 1))), seed, n_train, 1)
    val = []
    for i, n in enumerate(lengths):
        share = n_val // len(lengths) + (i < n_val % len(lengths))
        val += generate(lambda random, n=n: draw(random, n), (seed, n), 1, share)[1]
    longest = (max(high, *lengths) - anchors) * (1 if keys_only else 2)
    return Task(train, val, score, metric, levels_of(val, metric), max_new_tokens=longest)
