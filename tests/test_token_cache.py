"""Ids that were kept are those that the tokenizer gives, whatever happened to the file."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tasks
from common import token_cache
from common.errors import UserError
from common.files import cache_dir
from common.token_cache import TokenCache
from common.tokenizer import Tokenizer, get_tokenizer
from task_checks import BYTES, hotpot_row, prompts, write

ROOT = Path(__file__).resolve().parents[1]
LETTERS = get_tokenizer("chars:ab \n_#")


class Wide(Tokenizer):
    """More ids than two bytes can tell apart."""

    name, vocab_size, eot_id, mask_id = "wide", 70000, 0, None

    def encode(self, text):
        return [ord(c) % self.vocab_size for c in text]

    def decode_bytes(self, ids):
        return str(ids).encode()


class Silent(Wide):
    """Of the same name and vocabulary, but what it is asked must have been kept."""

    def encode(self, text):
        raise AssertionError(f"{text!r} was tokenised again")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "WORTH", 1)
    return cache_dir() / "tokens"


def texts(n: int, seed: int = 0, alphabet: str = "ab \n") -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(alphabet), random.integers(0, 60))) for _ in range(n)]


def kept(tok, made: list[str]) -> Path:
    cache = TokenCache(tok, "test")
    for text in made:
        cache.encode(text)
    cache.save()
    return cache.path


@pytest.mark.parametrize("name", ["world", "gpt2", "bytes", "letters", "wide"])
def test_ids_are_those_of_the_tokenizer(name, data):
    files = {"world": "rwkv-vocab/rwkv_vocab_v20230424.txt", "gpt2": "tiktoken/r50k_base.tiktoken"}
    made = {"letters": LETTERS, "wide": Wide()}
    tok = made.get(name) or get_tokenizer(name, data(files[name]) if name in files else None)
    alphabet = "ab \n" if name == "letters" else "ab \n\0the, 2é漢🙂\U00011170\ud83d"  # the last: half a pair
    strings = texts(300, alphabet=alphabet)
    expected = [tok.encode(text) for text in strings]
    for _ in range(2):  # without a file, then with one
        cache = TokenCache(tok, "test")
        assert [cache.encode(text) for text in strings + strings] == expected + expected
        assert all(type(i) is int for i in cache.encode(strings[0]))
        cache.save()
    assert not cache.new
    assert len(token_cache.load(cache.path, cache.kind)) == len(set(strings))


def test_what_is_kept_is_not_tokenised_again(folder):
    kept(Wide(), texts(50))
    cache = TokenCache(Silent(), "test")
    assert [cache.encode(text) for text in texts(50)] == [Wide().encode(text) for text in texts(50)]
    with pytest.raises(AssertionError):
        cache.encode("new")
    with pytest.raises(UserError, match="not in the alphabet"):
        TokenCache(LETTERS, "test").encode("?")


def test_another_vocabulary_or_task_has_another_file(folder):
    other = Wide()
    other.decode_bytes = lambda ids: b"" if ids == [69999] else Wide().decode_bytes(ids)
    found = [TokenCache(tok, name).path for tok in (Wide(), other, BYTES, LETTERS) for name in ("a", "b")]
    assert len(set(found)) == 8
    assert TokenCache(Wide(), "a").path == found[0]


def test_a_few_ids_are_not_worth_a_file(folder, monkeypatch):
    monkeypatch.setattr(token_cache, "WORTH", 100)
    kept(Wide(), ["a" * 99])
    assert not folder.exists()
    assert kept(Wide(), ["a" * 100]).exists()


def test_a_damaged_file_is_made_anew(folder):
    strings, kind = texts(20), np.dtype("<u4")
    path = kept(Wide(), strings)
    whole = path.read_bytes()
    assert token_cache.load(path, kind)
    damaged = [whole + b"\0\0\0\0", b"\0" * len(whole)]
    for at in (0, 31, 32, 39, 40, 41, 400, 800, len(whole) - 1):
        damaged += [whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]]
    for content in damaged:
        path.write_bytes(content)
        assert not token_cache.load(path, kind)
    kept(Wide(), strings)
    assert path.read_bytes() == whole


def write_some(seed: int) -> None:
    for part in range(10):
        kept(Wide(), texts(40, seed=100 * seed + part))


def test_processes_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("fork" if sys.platform != "win32" else "spawn")
    writers = [context.Process(target=write_some, args=(seed,)) for seed in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0, 0, 0]
    cache = TokenCache(Silent(), "test")
    for seed in (100 * seed + part for seed in range(3) for part in range(10)):
        assert [cache.encode(text) for text in texts(40, seed)] == [Wide().encode(text) for text in texts(40, seed)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_nothing_broken(folder):
    path = kept(BYTES, texts(20))
    before = path.read_bytes()
    dying = (  # half of the file is written, and the lock held, when it dies
        "import os, signal, sys; from pathlib import Path; from common import token_cache as t\n"
        "from common.tokenizer import get_tokenizer\n"
        "t.WORTH, whole = 1, Path.write_bytes\n"
        "def half(path, data):\n    whole(path, data[: len(data) // 2])\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.write_bytes = half\n"
        "cache = t.TokenCache(get_tokenizer('bytes'), 'test')\ncache.encode('x' * 1000)\ncache.save()\n"
    )
    process = subprocess.run([sys.executable, "-c", dying], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.returncode == -signal.SIGKILL
    assert len(list(folder.glob("*.tmp"))) == 1
    assert path.read_bytes() == before
    kept(BYTES, ["new"])
    assert {file.name for file in folder.iterdir()} == {"lock", path.name}  # what it left is gone
    assert len(token_cache.load(path, np.dtype("<u2"))) == len(set(texts(20))) + 1


def test_a_cache_that_cannot_be_written(folder, monkeypatch):
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")  # also root can't make a directory of it
    cache = TokenCache(BYTES, "test")
    assert cache.encode("abc") == [97, 98, 99]
    cache.save()
    assert folder.read_text() == "in the way"

    folder.unlink()
    path = kept(BYTES, texts(20))
    before = path.read_bytes()
    refuse = lambda *args: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    monkeypatch.setattr(Path, "write_bytes", refuse)
    kept(BYTES, ["more"])
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_directory_without_write_permission(folder):
    path = kept(BYTES, texts(20))
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        kept(BYTES, ["more"])
        assert len(TokenCache(BYTES, "test").known) == len(set(texts(20)))
    finally:
        folder.chmod(0o700)
    assert path.exists()


def test_the_size_is_bounded(folder, monkeypatch):
    old, size = kept(LETTERS, texts(50)), 4000
    os.utime(old, (1, 1))
    monkeypatch.setattr(token_cache, "LIMIT", size)
    for seed in range(5):
        path = kept(Wide(), texts(30, seed))
        assert sum(file.stat().st_size for file in folder.iterdir()) <= size
    assert not old.exists()  # the oldest file goes first, and in a file what was added first
    cache = TokenCache(Silent(), "test")
    assert len(cache.known) >= 20
    assert cache.encode(texts(30, 4)[0]) == Wide().encode(texts(30, 4)[0])
    assert path.stat().st_size > size - 300


def test_a_task_is_the_same_from_its_cache(tmp_path, folder):
    data = write(tmp_path / "hotpot.json", [hotpot_row(i) for i in range(40)])
    options = {"data": data, "max_prompt_tokens": 800, "fill": "others"}
    first, again = (tasks.build("hotpot", BYTES, 0, 0, 10, **options) for _ in range(2))
    assert [file.name[:7] for file in folder.glob("*-*")] == ["hotpot-"]
    assert prompts(first.val) == prompts(again.val)
    assert prompts(first.train) == prompts(again.train)
