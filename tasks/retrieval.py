"""Look up one of many pairs: kx=8503;qa=1177;...;?qa= -> 1177, the question last or first.

With the question last, a plain recurrent reader must keep every pair until it learns which one counts; with a seed, its
upper layers know the question before they read. With the question first (the control) both know it. The default has
64 pairs of 4-digit values because a head of size 64 holds at most 64 independent associations, and a pair is 4 of them
(the key gives the first digit, key and first digit the second, ...): 256 don't fit the 2 heads of a small layer.

Rows are generated, no data; one token a character, e.g. tokenizer = "chars:0123456789abcdefghijklmnopqrstuvwxyz=;?_#".
"""

from common.errors import UserError
from tasks import Example, Task
from tasks._common import cell_scores, char_ids, content_id, generate

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(number: int, length: int) -> str:
    """`number` written in base 26, a = 0."""
    return "".join(LETTERS[number // 26**i % 26] for i in reversed(range(length)))


def build(
    tok,
    seed: int,
    n_train: int,
    n_val: int,
    n_pairs: int = 64,
    key_len: int = 2,  # letters; the keys of a row are all different
    value_len: int = 4,  # digits
    question: str = "last",  # last | first
) -> Task:
    if question not in ("last", "first"):
        raise UserError(f"retrieval has no question={question!r}: use last or first")
    if value_len < 1 or not 1 <= key_len <= 8:
        raise UserError(f"retrieval with key_len={key_len}, value_len={value_len}: use 1 to 8 letters, 1 digit or more")
    if not 1 <= n_pairs <= 26**key_len:
        raise UserError(f"retrieval can't make n_pairs={n_pairs} different keys of key_len={key_len}: raise key_len")
    ids = char_ids(tok, DIGITS + LETTERS + "=;?")

    def draw(random) -> Example:
        keys = [letters(int(k), key_len) for k in random.choice(26**key_len, n_pairs, replace=False)]
        values = ["".join(map(str, digits)) for digits in random.integers(0, 10, (n_pairs, value_len)).tolist()]
        pairs = "".join(f"{k}={v};" for k, v in zip(keys, values, strict=True))
        i = int(random.integers(n_pairs))
        # both orders end in "=": the answer follows the same token
        prompt = f"{pairs}?{keys[i]}=" if question == "last" else f"?{keys[i]};{pairs}="
        return Example(content_id(prompt), [ids[c] for c in prompt], [ids[c] for c in values[i]])

    train, val = generate(draw, seed, n_train, n_val)
    return Task(train, val, cell_scores, "accuracy", {"chance": 0.1}, max_new_tokens=value_len + 1)
