"""Text to token ids and back. A tokenizer is named by a string, stored beside a model that was trained with it.

    world            RWKV World: greedy longest match over bytes, id 0 ends a text (BlinkDL/RWKV-LM, RWKV-v7)
    bytes            one id a byte
    gpt2             GPT-2 byte pairs, by tiktoken
    chars:ALPHABET   id = position in ALPHABET, for small checkpoints; the last ends a text, `_` elsewhere is the mask

Every tokenizer has name, vocab_size (rows it needs), eot_id, mask_id (or None), encode, decode_bytes, decode and check.
"""

import ast
import base64
import codecs
from abc import ABC, abstractmethod
from pathlib import Path

from common.errors import UserError

WORLD_FILE = "rwkv_vocab_v20230424.txt"


class Tokenizer(ABC):
    name: str
    vocab_size: int
    eot_id: int
    mask_id: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 (a character cut in the middle, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def check(self, rows: int) -> None:
        """Raise UserError unless a model with `rows` embeddings can have been made for this tokenizer."""
        known = {65536: "world", 50304: "gpt2", 50257: "gpt2", 256: "bytes"}  # 50304: gpt2 rounded up to 64 rows
        padded = 0 <= rows - self.vocab_size < 1024 and known.get(rows, self.name) == self.name
        if rows != self.vocab_size and not padded:
            near = [name for size, name in known.items() if 0 <= rows - size < 1024]
            near += [f"chars:ALPHABET of {rows}"] if rows < 256 else []
            hint = f"try --tokenizer={near[0]}" if near else "no tokenizer here has so many"
            raise UserError(f"tokenizer {self.name} has {self.vocab_size} tokens, the model {rows}: {hint}")


def utf8(text: str) -> bytes:
    """UTF-8 bytes of `text`; half a surrogate pair (JSON may hold one) becomes U+FFFD, as tiktoken has it."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


class World(Tokenizer):
    """The longest token that matches is taken, from left to right, on UTF-8 bytes."""

    name, vocab_size, eot_id, mask_id = "world", 65536, 0, 65535  # ids from 65530 are rows that no text uses

    def __init__(self, vocab_file: str | Path):
        self.tokens = read_vocabulary(vocab_file)
        self.ids = {token: i for i, token in self.tokens.items()}
        lengths: dict[bytes, set[int]] = {}
        for token in self.ids:
            lengths.setdefault(token[:2], set()).add(len(token))
        # the lengths worth trying after two given bytes, longest first; one byte always matches
        self.lengths = {start: sorted(n, reverse=True) for start, n in lengths.items()}

    def encode(self, text: str) -> list[int]:
        data, out, i = utf8(text), [], 0
        ids, lengths = self.ids, self.lengths
        while i < len(data):
            for n in lengths.get(data[i : i + 2], ()):
                if (token := ids.get(data[i : i + n])) is not None:
                    break
            else:
                n, token = 1, data[i] + 1  # single bytes are ids 1 to 256
            out.append(token)
            i += n
        return out

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens.get(i, b"") for i in ids)


def read_vocabulary(path: str | Path) -> dict[int, bytes]:
    """{id: bytes} of a file with lines `id python-literal number-of-bytes`."""
    tokens = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise UserError(f"vocabulary {path} can't be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise UserError(f"vocabulary {path} is not UTF-8 text") from e
    for number, line in enumerate(lines, 1):
        try:
            i, literal, n = line[: line.index(" ")], line[line.index(" ") : line.rindex(" ")], line[line.rindex(" ") :]
            literal = literal.strip()
            plain = literal[:1] in ("'", '"') and literal[0] == literal[-1] and "\\" not in literal  # nearly all are
            token = literal[1:-1] if plain else ast.literal_eval(literal)
            token = token.encode("utf-8") if isinstance(token, str) else token
            if not isinstance(token, bytes) or len(token) != int(n) or not 0 < int(i) < 65536:
                raise ValueError
            tokens[int(i)] = token
        except (ValueError, SyntaxError, TypeError) as e:
            raise UserError(f"vocabulary {path}, line {number}, is not `id literal length`: is it RWKV's?") from e
    if len(tokens) != 65529 or any(tokens.get(i + 1) != bytes([i]) for i in range(256)):
        raise UserError(f"vocabulary {path} is not {WORLD_FILE}, or not whole: {len(tokens)} tokens of 65529")
    return tokens


class Bytes(Tokenizer):
    name, vocab_size, eot_id, mask_id = "bytes", 256, 0, 1  # NUL and SOH stand in no text

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(i for i in ids if 0 <= i < 256)


class Chars(Tokenizer):
    def __init__(self, alphabet: str):
        if len(alphabet) < 2 or len(set(alphabet)) < len(alphabet):
            raise UserError(f"tokenizer chars:{alphabet}: the alphabet needs at least 2 characters, all different")
        self.alphabet, self.ids = alphabet, {c: i for i, c in enumerate(alphabet)}
        self.name, self.vocab_size, self.eot_id = f"chars:{alphabet}", len(alphabet), len(alphabet) - 1
        self.mask_id = self.ids.get("_") if alphabet[-1] != "_" else None

    def encode(self, text: str) -> list[int]:
        if unknown := [c for c in text if c not in self.ids]:
            raise UserError(f"character {unknown[0]!r} is not in the alphabet of tokenizer {self.name}")
        return [self.ids[c] for c in text]

    def decode_bytes(self, ids: list[int]) -> bytes:
        return "".join(self.alphabet[i] for i in ids if 0 <= i < len(self.alphabet)).encode("utf-8")


class GPT2(Tokenizer):
    name, vocab_size, eot_id, mask_id = "gpt2", 50257, 50256, None

    def __init__(self, vocab_file: str | Path | None):
        import tiktoken

        url = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
        try:
            if vocab_file is None:
                self.bpe = tiktoken.get_encoding("r50k_base")  # the same ranks as gpt2, in one file
                return
            # not by tiktoken's own reader: it would keep a copy of any file, and read that when the file has changed
            lines = Path(vocab_file).read_bytes().splitlines()
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
            if set(ranks.values()) != set(range(50256)):
                raise ValueError("not 50256 ranks")
        except (OSError, ValueError) as e:
            what = f"{vocab_file} is not" if vocab_file else "tiktoken can't get"
            raise UserError(f"{what} the GPT-2 ranks: download {url} and pass it as --vocab_file=PATH") from e
        pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
        self.bpe = tiktoken.Encoding(
            "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
        )

    def encode(self, text: str) -> list[int]:
        return self.bpe.encode_ordinary(text)

    def decode_bytes(self, ids: list[int]) -> bytes:
        return self.bpe.decode_bytes([i for i in ids if 0 <= i < self.vocab_size])


class Stream:
    """Decodes ids as they are generated: a character is given out when its last byte has come."""

    def __init__(self, tok: Tokenizer):
        self.tok, self.decoder = tok, codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self.decoder.decode(self.tok.decode_bytes([token]))

    def flush(self) -> str:
        """What is left of a character that never got its last byte, as U+FFFD."""
        return self.decoder.decode(b"", final=True)


def get_tokenizer(name: str, vocab_file: str | Path | None = None) -> Tokenizer:
    """The tokenizer called `name`; `vocab_file` replaces the vocabulary that world and gpt2 would download."""
    if name == "world":
        if vocab_file is None:
            from common.download import fetch  # only here: nothing else of this module needs the network

            vocab_file = fetch(WORLD_FILE)
        return World(vocab_file)
    if name == "bytes":
        return Bytes()
    if name == "gpt2":
        return GPT2(vocab_file)
    if name.startswith("chars:"):
        return Chars(name.removeprefix("chars:"))
    raise UserError(f"unknown tokenizer {name!r}: use world, bytes, gpt2 or chars:ALPHABET")
