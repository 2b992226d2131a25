"""Reading the user's files: rows of JSON, and texts of about a sentence from prose, WikiText or JSON."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError

# white space after . ! or ? and perhaps a closing mark, before a capital letter; not after an initial or a title
SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["”)]))(?<!\b[A-Z]\.)(?<!\b[MDS][rt]\.)(?<!\bMrs\.)\s+(?=["“(]?[A-Z])"""
)


def read_text(path: str) -> str:
    """The file as text, without its byte order mark if it has one; UserError if absent or not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise UserError(f"{path} can't be read ({e.strerror}): check the path of the data") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text (byte {e.start}): convert it, e.g. with iconv -t UTF-8") from e


def lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as f:
            yield from f
    except (OSError, UnicodeDecodeError):
        read_text(path)  # which says what is wrong
        raise


def read_rows(path: str) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a .jsonl file, or (row number, object) of a .json list; UserError names a bad one.

    One at a time: as Python's lists a file of coordinates takes ten times its size.
    """
    whole = str(path).endswith(".json")
    for at, text in [(1, read_text(path))] if whole else enumerate(lines(path), 1):
        if not whole and not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}:{e.lineno if whole else at} is not JSON ({e.msg}): mend or remove the line") from e
        if whole and not isinstance(value, list):
            raise UserError(f"{path} is not a list of rows like [{{...}}, ...]: mend it, or make it a .jsonl file")
        for number, row in enumerate(value, 1) if whole else [(at, value)]:
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not an object like {{...}}: mend or remove the row")
            yield number, row


def local(name: str) -> str:
    """The path of a file, or of what `python -m common.download` knows by this name or URL."""
    if Path(name).is_file():
        return name
    from common.download import fetch  # here, so that a task with files of its own needs no requests

    return str(fetch(name))


def read_table(path: str) -> Iterator[tuple[int, dict]]:
    """(number, row) of a .parquet file (as on Hugging Face) or of what read_rows reads."""
    if not path.endswith(".parquet"):
        yield from read_rows(path)
        return
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as e:
        raise UserError(f"{path} is parquet: pip install pyarrow, or give the official JSON") from e
    try:
        batches = parquet.ParquetFile(path).iter_batches(1024)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (OSError, ArrowInvalid) as e:
        raise UserError(f"{path} can't be read as parquet ({e}): check or download it again") from e


def row_text(row: dict) -> str:
    """The field "text", else question, answer and what other fields of that kind there are; no space before marks."""
    fields = ("question", "answer", "instruction", "prompt", "output")
    text = row.get("text") or " ".join(str(row[field]) for field in fields if field in row)
    return re.sub(r" (?=[.,;:!?](?: |$))", "", " ".join(str(text).split()))


def sentences(paragraphs: list[str], min_chars: int) -> Iterator[str]:
    """The sentences of each paragraph; a short one is joined with those after it."""
    for paragraph in paragraphs:
        piece = ""
        for sentence in SENTENCE_END.split(" ".join(paragraph.split())):
            piece = f"{piece} {sentence}".strip()
            if len(piece) >= min_chars:
                yield piece
                piece = ""
        if piece:
            yield piece


def detokenize(line: str) -> str:
    """A line of WikiText as it was before words and marks were set apart: 7 @.@ 2 kg ( 9 lb ) -> 7.2 kg (9 lb)."""
    line = re.sub(r' " ([^"]*) " ', r' "\1" ', re.sub(r" (?:@(.)@|(\u2011)) ", r"\1\2", f" {line} "))
    line = re.sub(r" (?='(?:s|t|m|d|re|ve|ll)\b)", "", line)  # John 's
    return re.sub(r"([(\[]) ", r"\1", re.sub(r" (?=[.,;:!?)\]])", "", line)).strip()


def read_texts(path: str, wikitext: bool, min_chars: int) -> Iterator[str]:
    """The texts of a file: a row each (.json, .jsonl), else sentences, where blank lines separate paragraphs."""
    if path.endswith((".json", ".jsonl")):
        return (row_text(row) for _, row in read_rows(path))
    text = read_text(path)
    if wikitext or path.endswith(".tokens"):
        lines = (line.strip() for line in text.split("\n"))
        return sentences([detokenize(line) for line in lines if not line.startswith("= ")], min_chars)
    # Project Gutenberg puts its own words before and after a book
    text = re.split(r"\*\*\* ?END OF", re.split(r"\*\*\* ?START OF.*", text)[-1])[0]
    return sentences(re.split(r"\n\s*\n", text), min_chars)
