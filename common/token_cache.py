"""Token ids kept from one start to the next, for tasks whose texts take seconds to tokenise.

A file for each task and vocabulary, in cache_dir()/tokens, little-endian: a 32-byte BLAKE2b of all that follows; the
number n of texts (8 bytes); n keys, each the 16-byte BLAKE2b of a text; n lengths (4 bytes); all ids (2 bytes each, or
4 if the vocabulary has more than 65536). Texts are found by content alone, wherever they come from.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

from common import tokenizer
from common.errors import UserError
from common.files import cache_dir, replacing

LIMIT = 1 << 29  # bytes of all files together: the oldest are removed
WORTH = 100_000  # new ids that are worth a file; fewer take some 0.2 s to make


class TokenCache:
    """`encode` with memory: the ids are those of tok.encode, whatever is in the file. name: of the task."""

    def __init__(self, tok: tokenizer.Tokenizer, name: str):
        self.tok, self.kind = tok, np.dtype("<u2" if tok.vocab_size <= 1 << 16 else "<u4")
        self.path = cache_dir() / "tokens" / f"{name}-{fingerprint(tok)}"
        self.known, self.new = load(self.path, self.kind), {}

    def encode(self, text: str) -> list[int]:
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if (ids := self.known.get(key)) is None:
            ids = self.known[key] = self.new[key] = np.array(self.tok.encode(text), self.kind)
        return ids.tolist()

    def save(self) -> None:
        """Add what is new to the file as it is by now; does nothing where it can't write."""
        if sum(map(len, self.new.values())) < WORTH:
            return
        from filelock import FileLock  # here, so that a task without long texts needs none

        folder, size, kept = self.path.parent, 0, {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock", timeout=20):  # a process that dies lets go of it
                for key, ids in (self.new | load(self.path, self.kind)).items():  # the newest first
                    if (size := size + ids.nbytes + 20) > LIMIT - 40:
                        break
                    kept[key] = ids
                with replacing(self.path) as tmp:
                    tmp.write_bytes(packed(kept))
                prune(folder)
            self.new = {}
        except (OSError, UserError):  # read-only, full or locked: the next start is slower, nothing else
            pass


def fingerprint(tok: tokenizer.Tokenizer) -> str:
    """All that ids depend on: vocabulary and algorithm."""
    parts = [tok.name, [tok.decode_bytes([i]) for i in range(tok.vocab_size)], Path(tokenizer.__file__).read_bytes()]
    parts += [version("tiktoken")] if tok.name == "gpt2" else []  # what \p{L} and \p{N} are is up to its release
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def packed(texts: dict[bytes, np.ndarray]) -> bytes:
    lengths = np.array([len(ids) for ids in texts.values()], "<u4").tobytes()
    body = b"".join([len(texts).to_bytes(8, "little"), *texts, lengths, *(ids.tobytes() for ids in texts.values())])
    return hashlib.blake2b(body, digest_size=32).digest() + body


def load(path: Path, kind: np.dtype) -> dict[bytes, np.ndarray]:
    """{key: ids} of a file; none if it is absent, cut or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    if len(data) < 40 or hashlib.blake2b(memoryview(data)[32:], digest_size=32).digest() != data[:32]:
        return {}
    n = int.from_bytes(data[32:40], "little")
    lengths, ids = np.frombuffer(data, "<u4", n, 40 + 16 * n), np.frombuffer(data, kind, -1, 40 + 20 * n)
    ids = np.split(ids, lengths.cumsum(dtype=np.int64)[:-1])
    return {data[40 + 16 * i : 56 + 16 * i]: ids[i] for i in range(n)}


def prune(folder: Path) -> None:
    """Remove what writers that were killed left, and the oldest files beyond LIMIT; needs the lock."""
    total = 0
    for file in sorted(folder.glob("*-*"), key=lambda file: -file.stat().st_mtime):
        if (total := total + file.stat().st_size) > LIMIT or file.suffix == ".tmp":
            file.unlink()
