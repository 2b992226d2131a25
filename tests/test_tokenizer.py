"""Tokenizers against implementations that are not ours, on strings that break tokenizers."""

import random
import time
from pathlib import Path

import pytest
import tiktoken

from common.errors import UserError
from common.tokenizer import Stream, get_tokenizer, read_vocabulary
from conftest import DATA

WORLD = DATA / "rwkv-vocab" / "rwkv_vocab_v20230424.txt"
HARD = [
    "",
    "Hello 世界 \n\n",
    "naïve café — “quotes” … ½ ﬁ ß İ ǆ",
    "e\u0301 vs é, हिन्दी की वर्तनी, العَرَبِيَّة, עִבְרִית, ไทย, 한국어, ქართული",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    " " * 300 + "\t\t\n\r\n" + "\n" * 70 + "    \u00a0\u200b\u3000",
    "1234567890 00 007 3.14159e-10 0x7fff 192.168.0.1",
    "for(int i=0;i<n;++i){a[i]+=b[i]*c;}// ok\n\tdef f(x):\n        return x**2\n",
    "\x00\x01\x02\x7f\ufeff\ufffd\U0010ffff",
    "User: hi\n\nAssistant: <think>\n</think>\n\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA================",
]


def random_strings(n):
    rng = random.Random(0)
    blocks = [(32, 127), (0x20, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (9, 14), (0xAC00, 0xD7A3)]
    for _ in range(n):
        yield "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(60)))


@pytest.fixture(scope="module")
def world():
    path = WORLD
    if not path.exists():
        rwkv = pytest.importorskip("rwkv", reason="no World vocabulary here, neither as data nor in pip rwkv")
        path = Path(rwkv.__path__[0]) / WORLD.name
    return get_tokenizer("world", path)


def test_world_equals_two_other_implementations(world):
    other = pytest.importorskip(
        "pyrwkv_tokenizer", reason="the package pyrwkv-tokenizer is not installed"
    ).RWKVTokenizer()
    pip = pytest.importorskip("rwkv.rwkv_tokenizer", reason="the package rwkv is not installed")
    trie = pip.TRIE_TOKENIZER(pip.__file__.replace("rwkv_tokenizer.py", "rwkv_vocab_v20230424.txt"))
    for text in [*HARD, *random_strings(2000)]:
        ids = world.encode(text)
        assert ids == list(trie.encode(text))
        assert ids == list(other.encode(text)) if text else ids == []
        assert world.decode(ids) == text


def test_world_on_a_book(world, data):
    other = pytest.importorskip(
        "pyrwkv_tokenizer", reason="the package pyrwkv-tokenizer is not installed"
    ).RWKVTokenizer()
    text = data("text/sherlock.txt").read_text(encoding="utf-8")
    ids = world.encode(text)
    assert ids == list(other.encode(text))
    assert world.decode(ids) == text


def test_world_facts(world):
    assert world.encode("Hello 世界 \n\n") == [33155, 33, 10267, 14610, 3336]
    assert (world.vocab_size, world.eot_id, world.mask_id, world.name) == (65536, 0, 65535, "world")
    assert world.decode_bytes([0, 65535, 66000]) == b""
    assert [world.decode_bytes([i + 1]) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert world.decode([0xE4 + 1]) == "\ufffd"
    assert world.encode("007") == world.encode("00") + world.encode("7"), "digits: two at a time"


@pytest.mark.parametrize("name", ["world", "bytes"])
def test_any_ids_decode(world, name):
    """What a model may say before it has learned anything."""
    tok, rng = world if name == "world" else get_tokenizer(name), random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(-2, tok.vocab_size + 9) for _ in range(20)]
        stream, text = Stream(tok), tok.decode(ids)
        assert "".join(stream.push(i) for i in ids) + stream.flush() == text
        raw = tok.decode_bytes(ids)
        assert text == raw.decode("utf-8", errors="replace")
    assert tok.decode_bytes([-1, -100]) == b""


def test_half_a_surrogate_pair_becomes_a_replacement_character(world):
    for tok in (world, get_tokenizer("bytes")):
        assert tok.decode(tok.encode("a\ud83d b")) == "a\ufffd b"
        assert tok.decode(tok.encode("\ud83d\ude00")) == "😀"


def test_loading_and_encoding_are_fast(world):
    """Seconds on any machine; bounds far above what is usual (0.1 s, 3 MB/s), to catch a quadratic mistake."""
    start = time.perf_counter()
    if WORLD.exists():
        read_vocabulary(WORLD)
    assert time.perf_counter() - start < 2
    start = time.perf_counter()
    world.encode("The quick brown fox, 2345 " * 20_000 + " " * 200_000)
    assert time.perf_counter() - start < 5


def test_a_file_with_crlf_is_the_same_vocabulary(world, tmp_path):
    lines = "".join(f"{i} {t!r} {len(t)}\r\n" for i, t in world.tokens.items())
    (tmp_path / "crlf.txt").write_bytes(lines.encode())
    assert read_vocabulary(tmp_path / "crlf.txt") == world.tokens
    rwkv = pytest.importorskip("rwkv", reason="the package rwkv, which ships one, is not installed")
    assert read_vocabulary(Path(rwkv.__path__[0]) / WORLD.name) == world.tokens


def test_bad_vocabularies(world, tmp_path):
    cases = {b"1 'a' 1\n": "not whole", b"1 'a' 2\n": "line 1", b"hello\n": "line 1", b"1 open('x') 1\n": "line 1",
             b"\xff\xfe": "UTF-8", b"99999 'a' 1\n": "line 1", b"1 'a 1\n": "line 1", b"1  1\n": "line 1",
             b"1 [] 0": "line 1", b"2 'a' 1\n1 'x'": "line 2"}  # fmt: skip
    for content, word in cases.items():
        (tmp_path / "v.txt").write_bytes(content)
        with pytest.raises(UserError, match=word):
            get_tokenizer("world", tmp_path / "v.txt")
    half = "".join(f"{i} {world.tokens[i]!r} {len(world.tokens[i])}\n" for i in range(1, 30_000))
    (tmp_path / "v.txt").write_text(half)
    with pytest.raises(UserError, match="not whole: 29999"):  # it would tokenize, but otherwise
        get_tokenizer("world", tmp_path / "v.txt")
    with pytest.raises(UserError, match="No such file"):
        get_tokenizer("world", tmp_path / "none.txt")
    with pytest.raises(UserError, match="directory"):
        get_tokenizer("world", tmp_path)


def test_streaming_gives_whole_characters(world):
    text = HARD[1] + HARD[4] + "é"
    for tok in (world, get_tokenizer("bytes")):
        stream, out = Stream(tok), []
        for i in tok.encode(text):
            out.append(stream.push(i))
        assert "".join(out) + stream.flush() == text
        assert all("\ufffd" not in piece for piece in out)
        assert stream.push(tok.encode("é")[0] if tok.name == "bytes" else 0xC3 + 1) == ""
        assert stream.flush() == "\ufffd"


def test_bytes():
    tok = get_tokenizer("bytes")
    for text in HARD:
        assert tok.decode(tok.encode(text)) == text
    assert (tok.vocab_size, tok.eot_id, tok.mask_id) == (256, 0, 1)


def test_chars():
    tok = get_tokenizer("chars:0123456789,_#")
    assert tok.encode("90,#") == [9, 0, 10, 12]
    assert tok.decode([9, 0, 10, 12]) == "90,#"
    assert (tok.vocab_size, tok.eot_id, tok.mask_id) == (13, 12, 11)
    assert get_tokenizer(tok.name).encode("7") == [7]
    assert get_tokenizer("chars:ab").mask_id is None
    assert get_tokenizer("chars:ab_").mask_id is None, "what ends a text can't be a mask too"
    with pytest.raises(UserError, match="'x'"):
        tok.encode("9x")
    for name in ("chars:aab", "chars:a", "chars:"):
        with pytest.raises(UserError, match="alphabet"):
            get_tokenizer(name)


def test_gpt2(data, monkeypatch, tmp_path):
    ranks = data("tiktoken/r50k_base.tiktoken")
    tok = get_tokenizer("gpt2", ranks)
    cache = tmp_path / "cache"  # tiktoken's own reading of the same file: named by the hash of its address
    cache.mkdir()
    (cache / "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4").write_bytes(ranks.read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    theirs, by_name = tiktoken.get_encoding("r50k_base"), get_tokenizer("gpt2")
    for text in [*HARD, *random_strings(200), "<|endoftext|>", "a\ud83d b"]:
        ids = tok.encode(text)
        assert ids == theirs.encode_ordinary(text)
        assert ids == by_name.encode(text)
        assert tok.decode(ids) == text.replace("\ud83d", "\ufffd")
    assert (tok.vocab_size, tok.eot_id, tok.mask_id) == (theirs.n_vocab, theirs.eot_token, None)
    assert tok.decode_bytes([-1, 50257, 66000]) == b""


def test_gpt2_without_ranks(data, monkeypatch, tmp_path):
    ranks = data("tiktoken/r50k_base.tiktoken").read_bytes()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: offline
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    cases = {"absent": None, "cut": ranks[:5000], "no_ranks": b"hello world, this is text", "binary": b"\xff\x00" * 99}
    for name, content in cases.items():
        path = tmp_path / name
        if content:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*r50k_base.*--vocab_file"):
            get_tokenizer("gpt2", path)
    with pytest.raises(UserError, match=r"r50k_base.*--vocab_file") as e:
        get_tokenizer("gpt2")
    assert "\n" not in str(e.value)
    (tmp_path / "cut").write_bytes(ranks)  # mended: the first reading must not be remembered
    assert get_tokenizer("gpt2", tmp_path / "cut").vocab_size == 50257
    assert not (tmp_path / "cache").exists()


def test_check_names_a_tokenizer_that_would_fit():
    tok = get_tokenizer("bytes")
    tok.check(256)
    tok.check(300)  # padded embeddings are usual
    for rows, word in (
        (65536, "=world"),
        (50304, "=gpt2"),
        (50257, "=gpt2"),
        (12, "=chars:"),
        (151936, "no tokenizer"),
    ):
        with pytest.raises(UserError, match=word):
            tok.check(rows)
    digits = get_tokenizer("chars:0123456789,#")
    for rows in (12, 16, 64, 128):
        digits.check(rows)
    for rows, word in ((256, "=bytes"), (65536, "=world"), (11, "=chars:")):
        with pytest.raises(UserError, match=word):
            digits.check(rows)


def test_check_of_large_vocabularies(world, data):
    gpt2 = get_tokenizer("gpt2", data("tiktoken/r50k_base.tiktoken"))
    world.check(65536)
    for rows in (50257, 50304, 51200):
        gpt2.check(rows)
        with pytest.raises(UserError, match="=gpt2"):
            world.check(rows)
    with pytest.raises(UserError, match="=world"):
        gpt2.check(65536)  # larger, but not by padding


def test_unknown_name():
    with pytest.raises(UserError, match="world, bytes, gpt2 or chars"):
        get_tokenizer("bert")
