"""In-place repair: fill blanks whose content stands elsewhere in the same text, mostly to the right of them.

    rightcopy   L=93572084|M=________|R=16640295            M is R
    rightrev    L=93572084|M=________|R=16640295            M is R backwards
    struct      {"a":9357,"b":________,"c":1664}            b is a followed by c
    constr      P=93572084|M=________|R=16                  M is P's last digit, then the two digits of R in turns
    index       A=9357208416640295|Y=____|I=07,10           Y is A from place I to place I, the first is 00
    poscopy     A=93572084|M=___|I=2                        M is A's digit at place I, three times
    retr        a=9357;b=2084;c=1664;d=0295|ANS=____|Q=c    ANS is the value of Q
    rule        A=93572084|M=________|R=V                   M is A (R=C), or A backwards (R=V)
    cipher      A=93572084|M=________|K=3957208416          M is A, digit d of it replaced by K's at place d
    shift       A=93572084|M=________|K=3                   M is A, every digit raised by K modulo 10
    parity      X=1_0100_1...|P=01...                       a bit of each block, P are the parities of whole blocks

All that the following need stands to the left of their blanks, so that a causal reader can fill them: controls.

    add         93572084+16640295=11____379                 the middle digits of the sum, which has a digit more
    inter       A=9357|B=1664|M=________                    M is A and B in turns, digit by digit
    multi       A=9357|C=1664|B=________|D=75391664         B is A followed by C, D is A backwards followed by C
    perm        P=3102|Y=7359|A=____                        digit i of Y is A's at place P[i]
    qa          Q:35+72|A:___                               the sum, which has a digit more

    aq          Q:__+__|A:107                               two numbers with that sum; many are right, so that `exact`
                                                            and `accuracy` can't reach 1 and `valid` counts them all
    qa_or_aq                                                one of the two, at random

A causal reader reaches a blank before it reaches what belongs there, so that its best score can be computed. Several
published descriptions leave room: these are their plainest reading (+ joins strings in struct and multi; in parity the
blanks are bits of X; numbers have leading zeros so that all rows of a kind are equally long).
Rows are generated, no data. The tokenizer needs a mask token; a small model wants the small alphabet of its kind:
tokenizer = "chars:0123456789LMR=|_#" (constr: "...PMR=|_#"), for struct 'chars:0123456789{"a:,bc}_#'; the error that a
tokenizer without them meets names the characters of any kind.
"""

import re
from string import ascii_lowercase

from common.errors import UserError
from tasks import Example, Task
from tasks._common import cell_scores, char_ids, generate
from tasks._infill import KINDS, example


def sums(tok):
    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        """cell_scores, and valid: share of rows that, filled in, state a true sum."""
        valid = 0
        for e, got in zip(examples, predictions, strict=True):
            filled = dict(zip(e.blanks, got, strict=False))
            text = tok.decode([filled.get(i, t) for i, t in enumerate(e.prompt)])
            found = re.fullmatch(r"Q:([0-9]+)\+([0-9]+)\|A:([0-9]+)", text)
            valid += found is not None and int(found[1]) + int(found[2]) == int(found[3])
        return cell_scores(examples, predictions) | {"valid": valid / len(examples)}

    return score


def build(
    tok,
    seed: int,
    n_train: int,
    n_val: int,
    kind: str = "rightcopy",  # one of those above
    n_digits: int = 8,  # of each random number (parity: bits of a block); -1 = as published for the kind
    ease: int = 0,  # add: in training one number has a 0 at ease / (ease + 1) of the places on average; 0 = by chance
    n_blanks: int = 4,  # add, index: digits to fill in
    n_parts: int = -1,  # parity: blocks, poscopy: times, retr: pairs; -1 = as published: 4, 3, 4
) -> Task:
    if kind not in KINDS:
        raise UserError(f"infill has no kind {kind!r}: choose one of {', '.join(KINDS)}")
    what = KINDS[kind]
    n = what.n if n_digits == -1 else n_digits
    name, m = ("n_blanks", n_blanks) if kind in ("add", "index") else ("n_parts", what.m if n_parts == -1 else n_parts)
    if n < what.least:
        raise UserError(f"infill kind={kind} with n_digits={n} has nothing to fill in: raise n_digits")
    if n > what.most:
        raise UserError(f"infill kind={kind} takes n_digits of {what.least} to {what.most}, not {n}")
    if what.m and not 1 <= m <= what.most_m(n):
        raise UserError(f"infill kind={kind} with n_digits={n} takes {name} of 1 to {what.most_m(n)}, not {m}")
    if ease and kind != "add":
        raise UserError(f"infill kind={kind} takes no ease: only a sum, kind=add, has places that are easy")
    if ease < 0:
        raise UserError(f"infill kind=add with ease={ease}: use 0 for random digits, or 1 or more")
    alphabet = what.alphabet + ascii_lowercase[:m] if kind == "retr" else what.alphabet
    if tok.mask_id is None:
        raise UserError(f"infill needs a mask token, tokenizer {tok.name!r} has none: use 'chars:{alphabet}_#'")
    ids = char_ids(tok, alphabet)

    def draw(random, **options) -> Example:
        return example(ids, tok.mask_id, what.draw(random, n, m, **options), what.bag)

    train, val = generate(draw, seed, n_train, n_val)
    if ease:  # an easy way in: where one number has a 0, a sum is a copy, but for a carry
        train, _ = generate(lambda random: draw(random, ease=ease), seed, n_train, 1)
    levels = {"chance": what.chance, "causal ceiling": what.ceiling(n, m)}
    if best := what.best(n):
        levels["ceiling"] = best
    score = sums(tok) if kind in ("qa", "aq", "qa_or_aq") else cell_scores
    return Task(train, val, score, "accuracy", levels, max_new_tokens=max(len(e.answer) for e in val))
