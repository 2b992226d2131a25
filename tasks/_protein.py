"""Protein files, splits without relatives on both sides, and distractor proteins, for the tasks on proteins."""

import gzip
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator

from common.errors import UserError
from tasks._common import content_id, rng
from tasks._text import read_table

AMINO = "ACDEFGHIKLMNPQRSTVWYX"  # X: any other
K = 10  # residues of a word that relatives share


# --- files
def read(path: str) -> Iterator[tuple[str, dict]]:
    """(where it stands, row) of a .jsonl, .jsonl.gz, .json or .parquet file, or of FLIP's secondary-structure zip."""
    path = str(path)
    try:
        if path.endswith(".zip"):
            yield from read_flip(path)
        elif path.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8") as f:
                yield from ((f"{path}:{at}", dict(json.loads(line))) for at, line in enumerate(f, 1) if line.strip())
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} can't be read ({e}): is it whole, and a file of proteins?") from e
    if not path.endswith((".zip", ".gz")):
        yield from ((f"{path}:{at}", row) for at, row in read_table(path))


def read_flip(path: str) -> list[tuple[str, dict]]:
    """FLIP's splits.zip: sequences, labels ("SET=train VALIDATION=False" behind the name) and masks in FASTA files."""
    with zipfile.ZipFile(path) as z:
        parts = {}
        for name in ("sequences", "sampled", "mask"):
            fasta = re.findall(r">(\S+)([^\n]*)\n([^>]*)", z.read(f"splits/{name}.fasta").decode())
            parts[name] = {i: ("".join(text.split()), rest) for i, rest, text in fasta}
    rows = []
    for i, (seq, _) in parts["sequences"].items():
        labels, rest = parts["sampled"][i]
        split = "test" if "SET=test" in rest else "val" if "VALIDATION=True" in rest else "train"
        rows.append((f"{path}:{i}", {"id": i, "seq": seq, "ss3": labels, "mask": parts["mask"][i][0], "split": split}))
    return rows


def field(row: dict, names: tuple[str, ...], where: str, default=None):
    """The first of `names` that the row has; UserError if there is none and no default."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    if default is None:
        raise UserError(f"{where} has none of the fields {', '.join(names)}: add one")
    return default


def sequence(row: dict, where: str) -> str:
    seq = field(row, ("seq", "sequence", "Sequence"), where)
    if not isinstance(seq, str) or not seq.strip().isalpha():
        raise UserError(f"{where} has a sequence that is not letters: mend or remove the row")
    return re.sub(f"[^{AMINO}]", "X", seq.strip().upper())


# --- splits
def words(seq: str) -> set[str]:
    return {seq[i : i + K] for i in range(len(seq) - K + 1)} or {seq}


def unrelated(rows: list[dict], val: list[dict], share: float, removed: Counter) -> list[dict]:
    """The rows that are no relatives of any of `val`.

    Relatives have the same sequence, the same "cluster" (if rows have one), or share more than `share` of the
    10-residue words of the shorter of the two.
    """
    places, sizes, seqs, clusters = {}, [], {row["seq"] for row in val}, {row["cluster"] for row in val} - {None}
    for n, row in enumerate(val):
        sizes.append(max(1, len(row["seq"]) - K + 1))
        for word in words(row["seq"]):
            places.setdefault(word, []).append(n)
    kept = []
    for row in rows:
        seq = row["seq"]
        size = max(1, len(seq) - K + 1)
        common = {word for i in range(size) if (word := seq[i : i + K]) in places}
        shared = Counter(n for word in common for n in places[word])
        if seq in seqs:
            removed["with a validation sequence"] += 1
        elif row["cluster"] in clusters:
            removed["of a validation cluster"] += 1
        elif any(hits > share * min(size, sizes[n]) for n, hits in shared.items()):
            removed[f"sharing over {share:.0%} of their {K}-residue words with a validation protein"] += 1
        else:
            kept.append(row)
    return kept


def split(train: list[dict], val: list[dict], seed: int, n_val: int, share: float, removed: Counter) -> tuple:
    """-> (training proteins, validation proteins), ordered by seed and sequence.

    val: the proteins that are for validation, of which n_val are taken (0 = all). If there are none, a tenth of `train`
    is, or n_val if that is more, whatever the seed: no seed validates on what another one trains on.
    """
    different = {row["seq"]: row for row in reversed(train)}
    removed["repeated"] += len(train) - len(different)
    train, val = list(different.values()), list({row["seq"]: row for row in val}.values())

    def order(rows, seed):
        return sorted(rows, key=lambda row: content_id(f"{seed} {row['seq']}"))

    if not val:
        train, n = order(train, "side"), max(n_val, len(train) // 10)
        train, val = train[n:], train[:n]
        removed["for validation, not used"] += n - (n_val or n)
    # none is related to any of `val`, also not to what n_val leaves: notes of validation prompts come from there
    return unrelated(order(train, seed), val, share, removed), order(val, seed)[: n_val or None]


def too_few(task: str, path: str, train: list, val: list, n_val: int, removed: Counter) -> None:
    """UserError unless there are n_val validation proteins and any for training."""
    if len(val) < max(1, n_val) or not train:
        reasons = ", ".join(f"{n} {reason}" for reason, n in removed.most_common() if n) or "none was removed"
        raise UserError(
            f"{task} found {len(val)} validation and {len(train)} training proteins in {path}, n_val={n_val}"
            f" ({reasons}): lower n_val, or give more"
        )


# --- parts of examples
def crop(random, row: dict, length: int) -> int:
    """Where a window of `length` residues starts that has at least one residue of `row["known"]`."""
    anchor = int(random.choice(row["known"]))
    least, most = max(0, anchor - length + 1), max(0, min(anchor, len(row["seq"]) - length))
    return int(random.integers(least, most + 1))


def notes(p, pool: list[dict], row: dict, room: int, *key) -> list[int]:
    """`room` tokens of other proteins of `pool`, the last one cut; none that shares a 10-residue word with `row`."""
    body, mine, end = [], words(row["seq"]), p.tok.encode("\n\n")
    for i in rng("notes", *key).permutation(len(pool)):
        if len(body) >= room:
            break
        seq = pool[i]["seq"][: p.note_residues]
        if mine.isdisjoint(words(seq)):
            body += [*p.tok.encode(f"Protein note {pool[i]['id']}: "), *(p.ids[c] for c in seq), *end]
    return body if len(body) <= room else [*body[: max(0, room - len(end))], *end][:room]


def with_notes(p, question: list[int], end: list[int], pool: list[dict], row: dict, *key) -> list[int]:
    """Question, notes (or the other way round) and end; p: a task's Prompts, which says how long and in which order."""
    room = p.max_prompt_tokens - len(question) - len(end)
    if room < 0:
        raise UserError(
            f"a question of {len(question) + len(end)} tokens is over max_prompt_tokens={p.max_prompt_tokens}:"
            " raise it, or lower max_residues"
        )
    body = notes(p, pool, row, room, *key) if p.notes == "fill" else []
    return (question + body if p.order == "question_first" else body + question) + end


def symbols(tok, e, ids: list[int]) -> list[str]:
    """What was predicted, a symbol each; token by token at blanks, so that a long token can't shift the others."""
    return [tok.decode([i]) for i in ids] if e.blanks else list(tok.decode(ids).strip())
