"""What a list says: its i-th item, the item between two others, or its values in the order of their keys.

    nameindex     k3,9x,0b,...;?1c=   the name at that place (2 digits in base 36, the first is 00)
    middlematch   k3,9x,0b,...;?k3,0b=   the name that stands between the two
    kvsort        41:309847,07:118230,...;?=   the values in the order of their keys, comma between them

The question stands after the list, or before it (control; kvsort asks nothing more than to sort). Names and keys of a
row are all different. Rows are generated, no data; one token a character, e.g. tokenizer =
"chars:0123456789abcdefghijklmnopqrstuvwxyz,:;?=_#".
"""

from common.errors import UserError
from tasks import Example, Task
from tasks._common import cell_scores, char_ids, content_id, generate

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int, length: int = 2) -> str:
    return "".join(DIGITS[number // 36**i % 36] for i in reversed(range(length)))


def names(random, n: int) -> list[str]:
    return [base36(int(i)) for i in random.choice(36**2, n, replace=False)]


# a generator and the number of items -> list, question, answer
def nameindex(random, n: int) -> tuple[str, str, str]:
    items, i = names(random, n), int(random.integers(n))
    return ",".join(items), base36(i), items[i]


def middlematch(random, n: int) -> tuple[str, str, str]:
    items, i = names(random, n), int(random.integers(1, n - 1))
    return ",".join(items), f"{items[i - 1]},{items[i + 1]}", items[i]


def kvsort(random, n: int) -> tuple[str, str, str]:
    keys = [f"{k:02}" for k in random.choice(100, n, replace=False)]
    values = ["".join(map(str, digits)) for digits in random.integers(0, 10, (n, 6)).tolist()]
    pairs = list(zip(keys, values, strict=True))
    return ",".join(map(":".join, pairs)), "", ",".join(value for _, value in sorted(pairs))


KINDS = {  # name: (generator of rows, items, fewest and most items)
    "nameindex": (nameindex, 64, 2, 36**2),
    "middlematch": (middlematch, 96, 3, 36**2),
    "kvsort": (kvsort, 7, 2, 100),
}


def levels_of(kind: str, n: int) -> dict[str, float]:
    """Expected share of answer characters right: of random characters, and of a random one of the items that fit."""
    if kind == "kvsort":  # 6 digits a value and the commas, whose places are certain
        blind, known = (6 * n / 10 + n - 1) / (7 * n - 1), (6 * n * (1 / n + (1 - 1 / n) / 10) + n - 1) / (7 * n - 1)
        return {"chance": blind, "a value of the list": known}
    fit = n if kind == "nameindex" else n - 2
    same = 35 / (36**2 - 1)  # one character of two different names is the same
    return {"chance": 1 / 36, "a name of the list": 1 / fit + (1 - 1 / fit) * same}


def build(
    tok,
    seed: int,
    n_train: int,
    n_val: int,
    kind: str = "nameindex",  # nameindex | middlematch | kvsort
    n_items: int = 0,  # 0 = as published: 64 names, 96 names, 7 pairs
    question: str = "last",  # last | first
) -> Task:
    if kind not in KINDS:
        raise UserError(f"lists has no kind {kind!r}: choose one of {', '.join(KINDS)}")
    if question not in ("last", "first"):
        raise UserError(f"lists has no question={question!r}: use last or first")
    make, usual, fewest, most = KINDS[kind]
    n = n_items or usual
    if not fewest <= n <= most:
        raise UserError(f"lists kind={kind} can't have n_items={n}: use {fewest} to {most}")
    ids = char_ids(tok, DIGITS + ",:;?=")

    def draw(random) -> Example:
        items, asked, answer = make(random, n)
        # both orders end in "=": the answer follows the same token
        prompt = f"{items};?{asked}=" if question == "last" else f"?{asked};{items}="
        return Example(content_id(prompt), [ids[c] for c in prompt], [ids[c] for c in answer])

    train, val = generate(draw, seed, n_train, n_val)
    return Task(train, val, cell_scores, "accuracy", levels_of(kind, n), max_new_tokens=len(val[0].answer) + 1)
