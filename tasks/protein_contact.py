"""Contacts of proteins: are two residues, apart along the chain, close in space?

    spot     Sequence: MKVTNYQG... / Pairs: 4-17 30-52 / notes / Answer:      -> a digit a pair, 10
    blanks   MKVTNYQG...=4-17_30-52_      masks behind the pairs, filled where they stand; or the pairs first

A contact is a distance below `cutoff` (8 A) between beta carbons (rows {"seq", "cb": [[x, y, z], ...]}, or ProteinNet's
"tertiary" and "valid_mask"), or a pair of the list "contacts" (0-based) of rows without coordinates, which must hold
every contact from min_sep on.

Most pairs are far apart, so that saying "no" is right 98 times in 100 with sampling="random"; and contacts are near
along the chain, so that in sampling="balanced" the separation alone gives much away (see the level "separation").
sampling="hard" gives each contact another pair of the same separation that is none, half of them below and half from
24 residues on: the separation says nothing. Blanks need e.g. "chars:ACDEFGHIKLMNPQRSTVWYX0123456789-=_#".

Answers are scored as they are decoded, and by how much likelier 1 was than 0: AUROC, and with n_pairs=0 (all pairs of
a window: lower max_residues, raise max_prompt_tokens) the precision of the L/5 likeliest long-range contacts.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields

import numpy as np

from common.errors import UserError
from tasks import Example, Task, _protein
from tasks._binary import auroc, precision_at, rates
from tasks._common import Generated, char_ids, content_id, rng
from tasks._text import local

LONG = 24  # separation from which a contact counts as long range
KNOWN = {
    "form": ("spot", "blanks"),
    "sampling": ("random", "balanced", "hard"),
    "pairs": ("last", "first"),
    "notes": ("none", "fill"),
    "order": ("question_first", "notes_first"),
}


# --- chains
def chain(where: str, row: dict) -> dict:
    """A row of a file -> id, seq, known (residues with coordinates), at (L, 3) or touch (n, 2), cluster, split."""
    seq, at, touch = _protein.sequence(row, where), None, None
    n, known = len(seq), np.ones(len(seq), bool)
    found = _protein.field(row, ("cb", "tertiary", "contacts"), where)
    try:
        found = np.array(found, dtype=np.float32)
    except (ValueError, TypeError) as e:
        raise UserError(f"{where} has coordinates or contacts that are not lists of numbers: mend the row") from e
    if row.get("cb") is None and row.get("tertiary") is None:
        touch = found.reshape(-1, 2).astype(int) if found.size % 2 == 0 else np.array([[-1, -1]])
        if touch.size and (touch.min() < 0 or touch.max() >= n):
            raise UserError(f"{where} has contacts that are not pairs of residues from 0 to {n - 1}: mend the row")
    else:
        if found.shape != (n, 3):
            raise UserError(f"{where} has coordinates of shape {found.shape} for {n} residues: mend or remove the row")
        at = found
        valid = np.array(_protein.field(row, ("valid_mask",), where, [True] * n), bool)
        if valid.shape != (n,):
            raise UserError(f"{where} has a valid_mask of {valid.size} for {n} residues: mend or remove the row")
        known = np.isfinite(at).all(1) & valid
    return {
        "id": str(row.get("id") or row.get("name") or where.rsplit(":", 1)[-1]),
        "seq": seq,
        "known": np.flatnonzero(known).tolist(),
        "at": at,
        "touch": touch,
        "cluster": row.get("cluster"),
        "split": row.get("split"),
    }


def load(path: str, min_residues: int, removed: Counter) -> list[dict]:
    rows = []
    for where, row in _protein.read(path):
        row = chain(where, row)
        if len(row["seq"]) < min_residues or not row["known"]:
            removed[f"shorter than min_residues={min_residues}" if row["known"] else "without coordinates"] += 1
        else:
            rows.append(row)
    return rows


# --- pairs of residues, arrays (n, 2) with i < j
def pairs_of(row: dict, start: int, stop: int, min_sep: int, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of known residues of a window, at least min_sep apart -> contacts, others."""
    known = np.array([i for i in row["known"] if start <= i < stop], int)
    pairs = known[np.stack(np.triu_indices(len(known), 1), 1)]
    pairs = pairs[pairs[:, 1] - pairs[:, 0] >= min_sep]
    if row["at"] is not None:
        i, j = pairs.T
        close = np.square(row["at"][i] - row["at"][j]).sum(1) < cutoff**2
    else:
        listed = {(min(pair), max(pair)) for pair in row["touch"].tolist()}
        close = np.array([(i, j) in listed for i, j in pairs.tolist()], bool)
    return pairs[close], pairs[~close]


def matched(random, yes: np.ndarray, no: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n contacts, and as many others of the same separations, half of them (if there are enough) of long range."""
    apart, used, found = no[:, 1] - no[:, 0], set(), {True: [], False: []}
    for i, j in random.permutation(yes).tolist():
        group = found[j - i >= LONG]
        others = np.flatnonzero(apart == j - i).tolist() if len(group) < n else []
        if others := [k for k in others if k not in used]:
            used.add(k := int(random.choice(others)))
            group.append(((i, j), no[k]))
    few = min(n // 2, len(found[True]))
    chosen = found[False][: n - few]
    chosen += found[True][: n - len(chosen)]
    return tuple(np.array([both[side] for both in chosen], int).reshape(-1, 2) for side in (0, 1))


def sample(random, yes: np.ndarray, no: np.ndarray, n: int, sampling: str, share: float) -> tuple[list, list]:
    """n pairs, fewer where the window has too few of a kind -> pairs, whether each is a contact; in random order."""
    if sampling == "random":
        taken = random.permutation(len(yes) + len(no))[:n]
        yes, no = yes[taken[taken < len(yes)]], no[taken[taken >= len(yes)] - len(yes)]
    elif sampling == "balanced":
        k = min(round(n * share), len(yes), int(len(no) * share / (1 - share)))
        yes, no = random.permutation(yes)[:k], random.permutation(no)[: round(k * (1 - share) / share)]
    else:
        yes, no = matched(random, yes, no, n // 2)
    both, order = [*yes.tolist(), *no.tolist()], random.permutation(len(yes) + len(no)).tolist()
    return [both[x] for x in order], [x < len(yes) for x in order]


# --- prompts
@dataclass
class Prompts:
    """Makes an example of a chain: a window of it and pairs in it, chosen by `key`."""

    tok: object
    ids: dict[str, int]
    form: str
    n_pairs: int
    sampling: str
    contact_share: float
    min_sep: int
    cutoff: float
    pairs: str
    notes: str
    note_residues: int
    order: str
    max_residues: int
    max_prompt_tokens: int

    def draw(self, rows: list[dict], pool: list[dict], i: int, *key) -> Example:
        """The i-th example: of the i-th chain (in turns), or of one behind it if its window has no contact."""
        for attempt in range(100):
            row = rows[(i + attempt) % len(rows)]
            random = rng("window", *key, i, attempt)
            start = _protein.crop(random, row, self.max_residues)
            yes, no = pairs_of(row, start, start + self.max_residues, self.min_sep, self.cutoff)
            total = len(yes) + len(no)
            asked, contact = sample(random, yes, no, self.n_pairs or total, self.sampling, self.contact_share)
            if asked and (self.sampling == "random" or any(contact)):
                break
        else:
            raise UserError(f"protein_contact finds no contact in its chains at min_sep={self.min_sep}: lower min_sep")
        seq = row["seq"][start : start + self.max_residues]
        asked = [(a - start, b - start) for a, b in asked]
        answer = [self.ids["01"[c]] for c in contact]
        all_of = len(seq) if len(asked) == total else 0
        meta = {"asked": asked, "contact": [int(c) for c in contact], "id": row["id"], "all_of": all_of}
        name = content_id(f"{seq} {asked}")
        if self.form == "blanks":
            prompt, at = self.blanks(seq, asked)
            return Example(name, prompt, answer, at, meta)
        return Example(name, self.spot(row, seq, asked, pool, *key, i), answer, meta=meta)

    def blanks(self, seq: str, asked: list) -> tuple[list[int], list[int]]:
        """-> prompt, the places of the masks. Residues count from 1."""
        before = [self.ids[c] for c in seq + "="] if self.pairs == "last" else []
        after = [self.ids[c] for c in "=" + seq] if self.pairs == "first" else []
        prompt, at = before, []
        for a, b in asked:
            prompt += [self.ids[c] for c in f"{a + 1}-{b + 1}"]
            at.append(len(prompt))
            prompt.append(self.tok.mask_id)
        return prompt + after, at

    def spot(self, row: dict, seq: str, asked: list, pool: list[dict], *key) -> list[int]:
        text = self.tok.encode
        places = text(f"Pairs (from 1): {' '.join(f'{a + 1}-{b + 1}' for a, b in asked)}\n")
        sequence = [*text("Sequence: "), *(self.ids[c] for c in seq), *text("\n")]
        task = text("Give 1 for each pair of residues of the protein that are in contact, else 0.\n")
        question = task + (sequence + places if self.pairs == "last" else places + sequence)
        return _protein.with_notes(self, question, text("\nAnswer bits:"), pool, row, *key)


# --- scores
def separations(examples: list[Example]) -> np.ndarray:
    return np.array([b - a for e in examples for a, b in e.meta["asked"]])


def levels_of(val: list[Example]) -> dict[str, float]:
    """balanced_accuracy without reading: of any constant answer, and of the best threshold on the separation alone."""
    labels, apart = np.array([c for e in val for c in e.meta["contact"]], bool), separations(val)
    best = max(rates(labels, apart < t)["balanced_accuracy"] for t in np.unique(apart))
    return {"chance": 0.5, "majority": 0.5, "separation": max(0.5, best)}


def scorer(tok):
    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        """`rates` over all pairs, and balanced_accuracy of those below and from 24 residues apart."""
        labels, got = [], []
        for e, ids in zip(examples, predictions, strict=True):
            out = _protein.symbols(tok, e, ids)
            out += [""] * (len(e.meta["contact"]) - len(out))
            for label, symbol in zip(e.meta["contact"], out, strict=False):
                labels.append(label)
                got.append(symbol == "1" if symbol in ("0", "1") else not label)  # what is no bit is wrong
        labels, got, far = np.array(labels, bool), np.array(got, bool), separations(examples) >= LONG
        ranges = {"short": ~far, "long": far}
        parts = {name: rates(labels[at], got[at])["balanced_accuracy"] for name, at in ranges.items() if at.any()}
        return rates(labels, got) | {f"balanced_accuracy {name}": value for name, value in parts.items()}

    return score


def score_odds(examples: list[Example], odds: list[list[float]]) -> dict[str, float]:
    """From log p(1) - log p(0) at each pair: auroc over all pairs; if an example asks for all pairs of its L
    residues, "precision at L/5" of the long-range ones, mean over such examples. A pair without an answer is wrong.
    """
    labels, scores, precisions = [], [], []
    for e, row in zip(examples, odds, strict=True):
        label = e.meta["contact"]
        row = row[: len(label)] + [math.inf * (1 - 2 * c) for c in label[len(row) :]]
        labels += label
        scores += row
        far = separations([e]) >= LONG
        if (k := e.meta["all_of"] // 5) and k <= far.sum():
            precisions.append(precision_at(np.array(row)[far], np.array(label)[far], k))
    found = {"auroc": auroc(scores, labels)} if 0 < sum(labels) < len(labels) else {}
    return found | ({"precision at L/5": sum(precisions) / len(precisions)} if precisions else {})


def build(
    tok,
    seed: int,
    n_train: int,  # examples; more than there are chains: other windows and pairs of them; 0 = one of each
    n_val: int,  # examples
    data: str = "",  # file of chains; "" = the published set, downloaded
    val_data: str = "",  # file of validation chains; "" = rows of data with "split": "val", else a tenth or val_chains
    val_chains: int = 0,  # several examples are made of each if there are fewer than n_val; 0 = n_val
    form: str = "spot",  # spot | blanks
    n_pairs: int = 32,  # at most so many; 0 = as many as there are
    sampling: str = "random",  # random | balanced | hard
    contact_share: float = 0.5,  # of balanced
    min_sep: int = 8,  # residues between the two along the chain
    cutoff: float = 8.0,  # angstrom
    pairs: str = "last",  # behind the sequence, or first
    notes: str = "none",  # of spot: none | fill: other chains, up to max_prompt_tokens
    note_residues: int = 192,  # at most so many of each
    order: str = "question_first",  # of spot: question_first | notes_first: the question next to the answer (control)
    max_residues: int = 384,  # longer chains: a window of so many
    min_residues: int = 96,
    max_prompt_tokens: int = 2048,
    share: float = 0.3,  # of 10-residue words in common with a validation chain: above it, not for training
) -> Task:
    options = locals()
    for name, values in KNOWN.items():
        if options[name] not in values:
            raise UserError(f"protein_contact has no {name}={options[name]!r}: use one of {', '.join(values)}")
    if form == "blanks" and (tok.mask_id is None or notes == "fill"):
        raise UserError("protein_contact with form=blanks needs a tokenizer with a mask, and notes=none")
    if min(n_train, n_pairs) < 0 or min(n_val, min_sep, max_residues) < 1 or not 0 < contact_share < 1:
        raise UserError("protein_contact needs n_val, min_sep, max_residues from 1, contact_share from 0 to 1")
    ids = char_ids(tok, _protein.AMINO + ("0123456789-=" if form == "blanks" else "01"))
    path, removed = local(data or "protein_contact_map-train"), Counter()
    rows, val_data = load(path, min_residues, removed), val_data or ("" if data else "protein_contact_map-valid")
    given = load(local(val_data), min_residues, removed) if val_data else [r for r in rows if r["split"] == "val"]
    train = [row for row in rows if row["split"] in (None, "train")]
    train, val = _protein.split(train, given, seed, val_chains or n_val, share, removed)
    _protein.too_few("protein_contact", path, train, val, val_chains or n_val, removed)
    prompts = Prompts(tok, ids, **{f.name: options[f.name] for f in fields(Prompts)[2:]})
    examples = [prompts.draw(val, given or val, i, seed, "val") for i in range(n_val)]
    lazy = Generated(lambda i: prompts.draw(train, train, i, seed, "train"), n_train or len(train))
    longest = max(len(e.answer) for e in examples)
    task = Task(lazy, examples, scorer(tok), "balanced_accuracy", levels_of(examples), max_new_tokens=longest + 1)
    task.contrast, task.score_odds = (ids["1"], ids["0"]), score_odds
    task.removed = {reason: n for reason, n in removed.items() if n}
    return task
