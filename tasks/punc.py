"""Punctuation and case restoration: a bare transcript -> the text as it was written, with other texts as distractors.

    Notes:
    - The fictional private detective that appears in "The Adventure of the Seven Clocks" what written by whom? ...
    - ...

    Transcript:
    were scott derrickson and ed wood of the same nationality yes

    Restore the punctuation and the capital letters of the transcript.
    Answer: Were Scott Derrickson and Ed Wood of the same nationality? yes

Texts come from HotpotQA ("question answer"), WikiText-2, or a .txt, .json or .jsonl file of your own. They are told
apart by their transcript, so no two rows share one; no validation text is a row or a note of training, and no note
gives away what its own prompt asks for. A mark inside a word (3.5, don't) stays in the transcript.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

from common.errors import UserError
from tasks import Example, Task
from tasks._common import Generated, content_id, rng
from tasks._text import read_texts

MARKS = '.,;:!?"()[]{}“”'
EDGES = re.compile(rf"([{re.escape(MARKS)}]*)(.*?)([{re.escape(MARKS)}]*)")
REQUEST = "Restore the punctuation and the capital letters of the transcript."


# --- words
def words(text: str) -> list[tuple[str, str, str]]:
    """[(marks before, word, marks after)]; marks that stand alone belong to the word before them."""
    out = []
    for token in text.split():
        before, word, after = EDGES.fullmatch(token).groups()
        if word:
            out.append((before, word, after))
        elif out:
            out[-1] = (*out[-1][:2], out[-1][2] + before)
    return out


def transcript(text: str) -> str:
    """What is left of a text without case and marks; also its name when texts are compared."""
    return " ".join(word.lower() for _, word, _ in words(text))


# --- score
def compare(clean: str, got: str) -> Counter:
    """Counts for one row. Marks are compared at words that difflib aligns, so an extra word doesn't shift the rest."""
    gold, out = words(clean), words(got)
    count = Counter(rows=1, words=len(gold), exact=" ".join(got.split()) == clean)
    for name, side in (("gold", gold), ("out", out)):
        count.update((name, mark) for before, _, after in side for mark in before + after)
    lower = [[w.lower() for _, w, _ in side] for side in (gold, out)]
    for block in difflib.SequenceMatcher(None, *lower, autojunk=False).get_matching_blocks():
        for g, o in zip(gold[block.a :][: block.size], out[block.b :][: block.size], strict=True):
            count["aligned"] += 1
            count["case"] += g[1] == o[1]
            for i in (0, 2):
                count.update(("hit", mark) for mark in (Counter(g[i]) & Counter(o[i])).elements())
    return count


def score_texts(clean: list[str], got: list[str]) -> dict[str, float]:
    """punct_f1: of all marks, at their place; f1 of each mark that occurs; exact: of whole rows.

    word_accuracy: share of the words that are there in order; case_accuracy: share of those with the right case.
    """
    count = sum((compare(c, g) for c, g in zip(clean, got, strict=True)), Counter())
    marks = [mark for mark in MARKS if count["gold", mark]]

    def f1(of: str) -> float:
        hit, total = sum(count["hit", m] for m in of), sum(count["gold", m] + count["out", m] for m in of)
        return 2 * hit / total if total else 0.0

    return {
        "punct_f1": f1(MARKS),
        "case_accuracy": count["case"] / max(1, count["aligned"]),
        "word_accuracy": count["aligned"] / count["words"],
        "exact": count["exact"] / count["rows"],
        **{f"f1 {mark}": f1(mark) for mark in marks},
    }


# --- texts
def find_file(source: str, data: str) -> str:
    if data or source != "hotpot":
        if not data:
            raise UserError(f"punc with source={source} needs a file: --task_args.data=PATH")
        return data
    from common.download import fetch  # here, so that a task with a file of its own needs no requests

    return str(fetch("hotpot_dev_distractor_v1.json"))


def choose(texts: Iterator[str], min_chars: int, max_chars: int, removed: Counter) -> dict[str, str]:
    """{transcript: text} of the usable texts; `removed` counts the others by reason."""
    out = {}
    for text in texts:
        bare, letters = transcript(text), sum(c.isalpha() for c in text)
        if len(text) < min_chars:
            removed[f"shorter than min_chars={min_chars}"] += 1
        elif len(text) > max_chars:
            removed[f"longer than max_chars={max_chars}"] += 1
        elif "<unk>" in text:
            removed["with <unk>"] += 1
        elif letters < max(24, len(text) / 3):
            removed["with few letters"] += 1
        elif not any(before or after for before, _, after in words(text)):
            removed["without punctuation"] += 1
        elif bare in out:
            removed["repeated"] += 1
        else:
            out[bare] = text
    return out


# --- prompts
class Prompts:
    """Makes the example of a text: its transcript among notes that are drawn by seed and transcript alone."""

    def __init__(self, tok, seed: int, pool: list[str], order: str, max_prompt_tokens: int):
        self.tok, self.seed, self.order, self.limit = tok, seed, order, max_prompt_tokens
        self.notes = [(f" {transcript(text)} ", tok.encode(f"\n- {text}")) for text in pool]

    def parts(self, bare: str) -> tuple[str, str]:
        """The prompt before and after its notes."""
        asked = f"Transcript:\n{bare}\n\n{REQUEST}"
        if not self.notes:
            return "", f"{asked}\nAnswer:"
        if self.order == "notes_first":
            return "Notes:", f"\n\n{asked}\nAnswer:"
        return f"{asked}\n\nNotes:", "\n\nAnswer:"

    def make(self, clean: str) -> Example:
        """The prompt is as long as the limit if the notes suffice: the last one is cut, never the transcript."""
        bare = transcript(clean)
        asked = f" {bare} "
        before, after = (self.tok.encode(part) for part in self.parts(bare))
        room, body = self.limit - len(before) - len(after), []
        for i in rng(self.seed, bare).permutation(len(self.notes)):
            if len(body) >= room:
                break
            name, ids = self.notes[i]
            if asked not in name and name not in asked:  # else it would give the answer, or a part of it, away
                body += ids
        return Example(
            content_id(bare),
            before + body[: max(0, room)] + after,
            self.tok.encode(" " + clean),
            meta={"clean": clean, "transcript": bare},
        )

    def misfit(self, clean: str, min_prompt_tokens: int, max_answer_tokens: int) -> str:
        """Why a text can't be an example; "" if it can."""
        e = self.make(clean)
        if len(e.answer) > max_answer_tokens:
            return f"with an answer over max_answer_tokens={max_answer_tokens}"
        if len(e.prompt) > self.limit:
            return f"with a transcript over max_prompt_tokens={self.limit}"
        if len(e.prompt) < min_prompt_tokens:
            return f"with a prompt under min_prompt_tokens={min_prompt_tokens}"
        return ""


def with_mark(bare: str, place: int, mark: str) -> str:
    """A transcript with `mark` behind the word that is `place` words before the last."""
    parts = bare.split()
    if place < len(parts):
        parts[-1 - place] += mark
    return " ".join(parts)


def levels_of(val: list[Example], train: list[str]) -> dict[str, float]:
    """punct_f1 without reading: the bare transcript, and it with the commonest mark at its commonest place.

    Counted from the end: the last word in prose, the word before a one-word answer in "question? answer".
    """
    clean, bare = [e.meta["clean"] for e in val], [e.meta["transcript"] for e in val]
    ends = (enumerate(reversed(words(text))) for text in train)
    count = Counter((place, mark) for end in ends for place, (_, _, after) in end for mark in after)
    commonest = max(count, key=lambda at: (count[at], -at[0]), default=(0, "."))
    return {
        "copy input": score_texts(clean, bare)["punct_f1"],
        "majority": score_texts(clean, [with_mark(x, *commonest) for x in bare])["punct_f1"],
    }


def build(
    tok,
    seed: int,
    n_train: int,  # 0 = all that the text gives
    n_val: int,
    source: str = "hotpot",  # hotpot | wikitext | file
    data: str = "",  # path; "" = the HotpotQA development set, downloaded
    min_chars: int = 48,
    max_chars: int = 220,
    notes: str = "fill",  # fill: up to max_prompt_tokens | none
    note_pool: int = 1024,  # texts that serve as notes, at most half of all; training comes to them last
    max_prompt_tokens: int = 1536,
    min_prompt_tokens: int = 0,
    max_answer_tokens: int = 128,
    order: str = "notes_first",  # notes_first | instruction_first: the transcript before the notes (control)
) -> Task:
    for name, value, known in (
        ("source", source, ("hotpot", "wikitext", "file")),
        ("notes", notes, ("fill", "none")),
        ("order", order, ("notes_first", "instruction_first")),
    ):
        if value not in known:
            raise UserError(f"punc has no {name}={value!r}: use one of {', '.join(known)}")
    if n_train < 0 or n_val < 1:
        raise UserError(f"punc with n_train={n_train}, n_val={n_val}: use 0 (all) or more, and 1 or more")
    path, removed = find_file(source, data), Counter()
    by_name = choose(read_texts(path, source == "wikitext", min_chars), min_chars, max_chars, removed)
    total = len(by_name) + removed.total()
    # by hash rather than by position: a text that comes or goes leaves the others where they are
    texts = [by_name[name] for name in sorted(by_name, key=lambda name: content_id(f"{seed} {name}"))]
    n_notes = min(note_pool, len(texts) // 2) if notes == "fill" else 0
    pool = texts[len(texts) - n_notes :]
    prompts = Prompts(tok, seed, pool, order, max_prompt_tokens)

    def fitting(texts: list[str]) -> Iterator[str]:
        for text in texts:
            if reason := prompts.misfit(text, min_prompt_tokens, max_answer_tokens):
                removed[reason] += 1
            else:
                yield text

    fit = fitting(texts[: len(texts) - n_notes])  # notes stand in training prompts, so validation can't use them
    val = [prompts.make(text) for text in islice(fit, n_val)]
    train = list(islice(chain(fit, fitting(pool)), n_train or None))
    if len(val) < n_val or len(train) < max(1, n_train):
        reasons = [f"{n} {reason}" for reason, n in removed.most_common()]
        reasons += [f"{n_notes} are notes (note_pool={note_pool})"] if len(val) < n_val else []
        raise UserError(
            f"punc built only {len(val) + len(train)} of {n_val + max(1, n_train)} examples from the {total} texts of"
            f" {path} ({', '.join(reasons) or 'all fit'}): lower n_val or n_train (0 = all), or give more text"
        )

    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        return score_texts([e.meta["clean"] for e in examples], [tok.decode(ids) for ids in predictions])

    rows = Generated(lambda i: prompts.make(train[i]), len(train))
    longest = max(len(e.answer) for e in val)
    return Task(rows, val, score, "punct_f1", levels_of(val, train), longest + 16)
