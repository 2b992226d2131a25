"""In-place repair: fill blanks whose content stands elsewhere in the same text, mostly to the right of them.

    rightcopy   L=93572084|M=________|R=16640295          M is R
    rightrev    L=93572084|M=________|R=16640295          M is R backwards
    struct      {"a":9357,"b":________,"c":1664}          b is a followed by c
    constr      P=93572084|M=________|R=16                M is P's last digit, then the two digits of R in turns

A causal reader reaches a blank before it reaches what belongs there, so that its best score can be computed.
Rows are generated, no data. The tokenizer needs a mask token; a small model wants the small alphabet of its kind:
tokenizer = "chars:0123456789LMR=|_#" (constr: "...PMR=|_#"), for struct 'chars:0123456789{"a:,bc}_#'.
"""

from common.errors import UserError
from tasks import Example, Task
from tasks._common import cell_scores, char_ids, content_id, generate


def rightcopy(l: str, r: str) -> tuple[str, str, str]:
    return f"L={l}|M=", r, f"|R={r}"


def rightrev(l: str, r: str) -> tuple[str, str, str]:
    return f"L={l}|M=", r[::-1], f"|R={r}"


def struct(a: str, c: str) -> tuple[str, str, str]:
    return f'{{"a":{a},"b":', a + c, f',"c":{c}}}'


def constr(p: str, r: str) -> tuple[str, str, str]:
    return f"P={p}|M=", (p[-1] + r[:2] * len(p))[: len(p)], f"|R={r[:2]}"


# name: (two strings of digits -> text before, in and after the blanks; its characters)
KINDS = {
    "rightcopy": (rightcopy, "0123456789LMR=|"),
    "rightrev": (rightrev, "0123456789LMR=|"),
    "struct": (struct, '0123456789{"a:,bc}'),
    "constr": (constr, "0123456789PMR=|"),
}


def causal_ceiling(kind: str, n_digits: int) -> float:
    """The best expected accuracy per blank of a reader that has seen nothing to the right of that blank.

    All digits are independent and uniform, so a blank is either a copy of a digit that stands on the left (certain)
    or independent of everything on the left (a guess, 1 in 10). Earlier blanks don't help: they read as masks.
    """
    known = {"rightcopy": 0, "rightrev": 0, "struct": 1 / 2, "constr": 1 / n_digits}[kind]
    return known + (1 - known) / 10


def build(
    tok,
    seed: int,
    n_train: int,
    n_val: int,
    kind: str = "rightcopy",  # rightcopy | rightrev | struct | constr
    n_digits: int = 8,  # of each of the two random numbers
) -> Task:
    if kind not in KINDS:
        raise UserError(f"infill has no kind {kind!r}: choose one of {', '.join(KINDS)}")
    if n_digits < (2 if kind == "constr" else 1):
        raise UserError(f"infill kind={kind} with n_digits={n_digits} has nothing to fill in: raise n_digits")
    layout, alphabet = KINDS[kind]
    if tok.mask_id is None:
        raise UserError(f"infill needs a mask token, tokenizer {tok.name!r} has none: use 'chars:{alphabet}_#'")
    ids = char_ids(tok, alphabet)

    def draw(random) -> Example:
        digits = "".join(map(str, random.integers(0, 10, 2 * n_digits)))
        left, middle, right = layout(digits[:n_digits], digits[n_digits:])
        prompt = [*(ids[c] for c in left), *[tok.mask_id] * len(middle), *(ids[c] for c in right)]
        blanks = list(range(len(left), len(left) + len(middle)))
        return Example(content_id(left + middle + right), prompt, [ids[c] for c in middle], blanks)

    train, val = generate(draw, seed, n_train, n_val)
    levels = {"chance": 0.1, "causal ceiling": causal_ceiling(kind, n_digits)}
    return Task(train, val, cell_scores, "accuracy", levels, max_new_tokens=len(val[0].answer))
