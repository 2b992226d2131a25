"""Secondary structure of proteins: each residue is in a helix (H), a strand (E) or neither (C); or 8 states (DSSP).

    spot      Sequence: MKVTNYQG... / Positions: 4 17 30 / notes / Answer:     -> the labels there, HEC
    blanks    the labels of all residues are mask tokens, filled where they stand:
              below        MKVT=____        after the whole sequence
              above        ____=MKVT        before it: a plain reader has nothing to go by
              interleaved  M_K_V_T_         each behind its residue; lag=2: M K V_T___ behind the next two

Data: FLIP's copy of NetSurfP-2.0 (3 states, with its own train and validation rows), downloaded; or your files with
rows {"seq": ..., "ss3" or "ss8" or "label": ..., "mask": "0110..."} (mask: 1 = seen in the structure; others are
neither asked nor scored). A token a residue and a label; blanks need e.g. "chars:ACDEFGHIKLMNPQRSTVWYX=_#".
No training protein has a validation protein's sequence, or shares over 30 % of its 10-residue words.
"""

from collections import Counter
from dataclasses import dataclass, fields

from common.errors import UserError
from tasks import Example, Task, _protein
from tasks._common import Generated, char_ids, content_id, rng
from tasks._text import local

STATES = {3: "HEC", 8: "HGIEBTSC"}
COIL = str.maketrans(" -_~LP", "CCCCCC")  # other ways to write "neither"; P: polyproline, new in DSSP 4
TO_3 = str.maketrans("HGIEBTSC", "HHHEECCC")
KNOWN = {
    "states": tuple(STATES),
    "form": ("spot", "blanks"),
    "layout": ("below", "above", "interleaved"),
    "where": ("random", "prefix", "suffix"),
    "positions": ("last", "first"),
    "notes": ("none", "fill"),
    "order": ("question_first", "notes_first"),
}


def protein(where: str, row: dict, states: int) -> dict:
    """A row of a file -> id, seq, labels, known (residues whose label counts), cluster, split."""
    seq = _protein.sequence(row, where)
    others = ("ss8", "label", "labels", "Secondary_structure")
    labels = str(_protein.field(row, others if states == 8 else ("ss3", *others), where)).upper()
    labels = labels.translate(COIL).translate(TO_3 if states == 3 else {})
    mask = _protein.field(row, ("mask", "resolved"), where, default="1" * len(seq))
    if not len(seq) == len(labels) == len(mask):
        raise UserError(f"{where} has {len(seq)} residues, {len(labels)} labels, a mask of {len(mask)}: mend the row")
    if odd := set(labels) - set(STATES[states]):
        raise UserError(f"{where} has the label {min(odd)!r}: states={states} knows {STATES[states]}")
    return {
        "id": str(row.get("id") or row.get("PDB_ID") or where.rsplit(":", 1)[-1]),
        "seq": seq,
        "labels": labels,
        "known": [i for i, m in enumerate(mask) if m in ("1", 1)],
        "cluster": row.get("cluster"),
        "split": row.get("split"),
    }


def load(path: str, states: int, min_residues: int, removed: Counter) -> list[dict]:
    rows = []
    for where, row in _protein.read(path):
        row = protein(where, row, states)
        if len(row["seq"]) < min_residues:
            removed[f"shorter than min_residues={min_residues}"] += 1
        elif not row["known"]:
            removed["without a residue in its mask"] += 1
        else:
            rows.append(row)
    return rows


# --- prompts
def interleave(residues: list[int], mask_id: int, lag: int) -> tuple[list[int], list[int]]:
    """Each residue's mask behind the residue `lag` places on -> (prompt, where the masks are)."""
    prompt, at = [], []
    for i in range(len(residues) + lag):
        prompt += residues[i : i + 1]
        if i >= lag:
            at.append(len(prompt))
            prompt.append(mask_id)
    return prompt, at


@dataclass
class Prompts:
    """Makes an example of a protein: a window of it, chosen by `key`, with a part of its labels asked for."""

    tok: object
    ids: dict[str, int]
    form: str
    layout: str
    lag: int
    queries: int
    where: str
    positions: str
    notes: str
    note_residues: int
    order: str
    max_residues: int
    max_prompt_tokens: int

    def make(self, row: dict, pool: list[dict], *key) -> Example:
        random = rng("window", *key, row["seq"])
        start = _protein.crop(random, row, self.max_residues)
        seq, labels = (row[name][start : start + self.max_residues] for name in ("seq", "labels"))
        known = [i - start for i in row["known"] if start <= i < start + len(seq)]
        if self.form == "blanks":
            prompt, at = self.blanks([self.ids[c] for c in seq])
            at = [at[i] for i in known]
        else:
            known, at = self.choose(known, random), []
            prompt = self.spot(row, seq, known, pool, *key)
        asked = "".join(labels[i] for i in known)
        name = content_id(f"{seq} {known}")
        return Example(name, prompt, [self.ids[c] for c in asked], at, {"labels": asked, "id": row["id"]})

    def blanks(self, residues: list[int]) -> tuple[list[int], list[int]]:
        """-> prompt, the place of each residue's mask."""
        n, masks, between = len(residues), [self.tok.mask_id] * len(residues), [self.ids["="]]
        if self.layout == "interleaved":
            return interleave(residues, self.tok.mask_id, self.lag)
        if self.layout == "above":
            return masks + between + residues, list(range(n))
        return residues + between + masks, list(range(n + 1, 2 * n + 1))

    def choose(self, known: list[int], random) -> list[int]:
        if self.where == "random" and self.queries < len(known):
            return sorted(random.choice(known, self.queries, replace=False).tolist())
        return known[-self.queries :] if self.where == "suffix" else known[: self.queries]

    def spot(self, row: dict, seq: str, asked: list[int], pool: list[dict], *key) -> list[int]:
        text, residues = self.tok.encode, [self.ids[c] for c in seq]
        places = text(f"Positions (from 1): {' '.join(str(i + 1) for i in asked)}\n")
        sequence = [*text("Sequence: "), *residues, *text("\n")]
        task = text("Give the secondary structure (one letter each) of the protein at the positions.\n")
        question = task + (sequence + places if self.positions == "last" else places + sequence)
        return _protein.with_notes(self, question, text("\nAnswer:"), pool, row, *key)


# --- scores
def scorer(tok, states: str):
    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        """q3 or q8: share of the asked residues with the right label; f1 of each label, over all asked residues."""
        count = Counter()
        for e, ids in zip(examples, predictions, strict=True):
            got = _protein.symbols(tok, e, ids)
            got += [""] * (len(e.meta["labels"]) - len(got))
            for label, out in zip(e.meta["labels"], got, strict=False):
                count.update([("gold", label), ("out", out)] + [("hit", label)] * (out == label))
        total, right = (sum(count[kind, c] for c in states) for kind in ("gold", "hit"))
        f1 = {c: 2 * count["hit", c] / (count["gold", c] + count["out", c]) for c in states if count["gold", c]}
        return {f"q{len(states)}": right / total} | {f"f1 {c}": value for c, value in f1.items()}

    return score


def levels_of(val: list[Example], states: str) -> dict[str, float]:
    """Shares of the validation labels: those of C, which is the usual guess, and of the most frequent one."""
    count = Counter("".join(e.meta["labels"] for e in val))
    return {
        "chance": 1 / len(states),
        "always C": count["C"] / count.total(),
        "majority": max(count.values()) / count.total(),
    }


def build(
    tok,
    seed: int,
    n_train: int,  # examples; more than there are proteins: other windows and positions of them; 0 = one of each
    n_val: int,  # proteins, an example of each; 0 = all that are for validation
    data: str = "",  # file of proteins; "" = FLIP's, downloaded
    val_data: str = "",  # file of validation proteins; "" = rows of data with "split": "val", else a tenth or n_val
    states: int = 3,  # 3 | 8
    form: str = "spot",  # spot | blanks
    layout: str = "below",  # of blanks: below | above | interleaved
    lag: int = 0,  # of interleaved: how many residues behind its own a plain reader sees before a label
    queries: int = 48,  # of spot: at most so many positions
    where: str = "random",  # of spot: random | prefix | suffix
    positions: str = "last",  # of spot: behind the sequence, or first
    notes: str = "none",  # of spot: none | fill: other proteins, up to max_prompt_tokens
    note_residues: int = 256,  # at most so many of each
    order: str = "question_first",  # of spot: question_first | notes_first: the question next to the answer (control)
    max_residues: int = 512,  # longer proteins: a window of so many, another one each time in training
    min_residues: int = 96,
    max_prompt_tokens: int = 2048,
    share: float = 0.3,  # of 10-residue words in common with a validation protein: above it, not for training
) -> Task:
    options = locals()
    for name, values in KNOWN.items():
        if options[name] not in values:
            raise UserError(f"protein_ss has no {name}={options[name]!r}: use one of {', '.join(map(str, values))}")
    if form == "blanks" and (tok.mask_id is None or notes == "fill"):
        raise UserError("protein_ss with form=blanks needs a tokenizer with a mask, and notes=none")
    if n_train < 0 or n_val < 0 or min(queries, max_residues) < 1 or lag < 0:
        raise UserError("protein_ss needs n_train, n_val and lag of at least 0, queries and max_residues of at least 1")
    alphabet = _protein.AMINO + STATES[states] + "=" * (form == "blanks")
    ids = char_ids(tok, "".join(dict.fromkeys(alphabet)))
    path, removed = local(data or "flip_secondary_structure"), Counter()
    rows = load(path, states, min_residues, removed)
    given = (
        load(local(val_data), states, min_residues, removed) if val_data else [r for r in rows if r["split"] == "val"]
    )
    train = [row for row in rows if row["split"] in (None, "train")]
    train, val = _protein.split(train, given, seed, n_val, share, removed)
    _protein.too_few("protein_ss", path, train, val, n_val, removed)
    prompts = Prompts(tok, ids, **{f.name: options[f.name] for f in fields(Prompts)[2:]})
    examples = [prompts.make(row, given or val, seed, "val") for row in val]
    # the i-th example of a protein is another window of it
    lazy = Generated(lambda i: prompts.make(train[i % len(train)], train, seed, i), n_train or len(train))
    longest = max(len(e.answer) for e in examples)
    levels = levels_of(examples, STATES[states])
    task = Task(lazy, examples, scorer(tok, STATES[states]), f"q{states}", levels, max_new_tokens=longest + 1)
    task.removed = {reason: n for reason, n in removed.items() if n}
    return task
