"""The model against implementations that are not ours, and the properties that inference and training rely on."""

import json

import numpy as np
import pytest
import torch

from common.batches import left_pad
from common.errors import UserError
from conftest import random_model
from model import RWKV7, RWKVConfig


def ids(T, V=50, seed=0):
    return torch.randint(0, V, (1, T), generator=torch.Generator().manual_seed(seed))


def flat(state):
    return [t for layer in state for t in layer]


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_layer=2, n_embd=64, vocab_size=30, head_size=64),
        dict(n_layer=4, n_embd=128, vocab_size=77, head_size=64, w_rank=40, a_rank=24, v_rank=8, g_rank=56),
        dict(n_layer=3, n_embd=192, vocab_size=100, head_size=64, n_ffn=256),
    ],
)
def test_logits_and_states_equal_pip_rwkv(sizes, tmp_path):
    rwkv = pytest.importorskip("rwkv.model", reason="pip package rwkv (a test dependency) is not installed")
    net = random_model(**sizes)
    net.save(tmp_path / "m.pth")
    oracle = rwkv.RWKV(model=str(tmp_path / "m"), strategy="cpu fp32")
    prompt = ids(37, sizes["vocab_size"])
    with torch.no_grad():
        logits, state = net.prefill(prompt)
        want, want_state = oracle.forward(prompt[0].tolist(), None)
        torch.testing.assert_close(logits[0], want, rtol=2e-5, atol=2e-5)
        for token in (3, 7):
            logits, state = net.step(torch.tensor([token]), state)
            want, want_state = oracle.forward([token], want_state)
    torch.testing.assert_close(logits[0], want, rtol=2e-5, atol=2e-5)
    for got, expected in zip(flat(state), want_state, strict=True):
        torch.testing.assert_close(got[0], expected, rtol=2e-5, atol=2e-5)


def test_golden_logits_of_a_trained_checkpoint(data):
    net = RWKV7.load(data("rwkv7-tiny-834k/rwkv7-tiny-834K-L12-D64-V256.pth"))
    want = np.fromfile(data("rwkv7-tiny-834k/expected-logits-7v0-834K.bin"), dtype=np.float32)
    with torch.no_grad():
        logits, _ = net.prefill(torch.tensor([list(b'"in')]))
    assert np.abs(logits[0].numpy() - want).max() < 2e-6


def test_trained_reverser_gets_every_digit(data):
    net = RWKV7.load(data("rwkv7-reverse/rwkv7-reverse-L4-D128-H64.pth"))
    lines = data("rwkv7-reverse/reverse_eval_seed42_600.jsonl").read_text().splitlines()
    encode = lambda s: ["0123456789,#".index(c) for c in s]
    right = total = 0
    with torch.no_grad():
        for i in range(0, len(lines), 100):
            rows = [json.loads(line) for line in lines[i : i + 100]]
            tokens, _ = left_pad([encode(r["prompt"] + r["target"]) for r in rows])
            lengths = [len(r["prompt"] + r["target"]) for r in rows]
            guess = net.head(net(tokens, lengths=lengths)[0]).argmax(-1)
            for row, g in zip(rows, guess.tolist(), strict=True):
                want = encode(row["target"])
                right += sum(a == b for a, b in zip(g[-1 - len(want) : -1], want, strict=True))
                total += len(want)
    assert (right, total) == (18900, 18900)


def test_split_anywhere_and_step_by_step_equal_one_pass():
    net, prompt = random_model(), ids(19)
    with torch.no_grad():
        whole, end = net(prompt)
        for cut in (0, 1, 7, 18, 19):
            first, state = net(prompt[:, :cut])
            second, state = net(prompt[:, cut:], state)
            torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-5)
            for got, want in zip(flat(state), flat(end), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        state = net.zero_state(1)
        for t in range(19):
            logits, state = net.step(prompt[:, t], state)
        torch.testing.assert_close(logits, net.head(whole[:, -1]), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch_mates_or_padding():
    net = random_model()
    rows = [ids(n, seed=n)[0].tolist() for n in (1, 5, 12)] + [[]]
    with torch.no_grad():
        tokens, lengths = left_pad(rows)
        h, state = net(tokens, lengths=lengths)
        for i, row in enumerate(rows[:3]):
            h1, state1 = net(torch.tensor([row]))
            torch.testing.assert_close(h[i, -len(row) :], h1[0], rtol=1e-5, atol=1e-5)
            for got, want in zip(flat(state), flat(state1), strict=True):
                torch.testing.assert_close(got[i], want[0], rtol=1e-5, atol=1e-5)
        assert all(not t[3].any() for t in flat(state)), "an empty row must leave the zero state untouched"
        again, _ = net(torch.where(torch.arange(12) < 12 - torch.tensor(lengths)[:, None], 49, tokens), lengths=lengths)
    assert torch.equal(h[1, -5:], again[1, -5:]), "the token in the padding left a trace"


def test_padding_gets_and_gives_no_gradient():
    net = random_model()
    emb = torch.randn(2, 6, 128, requires_grad=True)
    h, _ = net(emb, lengths=[6, 3])
    h[:, -3:].square().sum().backward()
    assert emb.grad.isfinite().all()
    assert not emb.grad[1, :3].any()
    assert emb.grad[1, 3:].any()


def test_checkpointing_and_bfloat16():
    net, prompt = random_model(), ids(16)
    grads = []
    for net.checkpointing in (False, True):
        net.zero_grad()
        net(prompt)[0].square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        exact, _ = net.prefill(prompt)
        net.dtype = torch.bfloat16
        rough, state = net.prefill(prompt)
    assert rough.dtype == torch.float32
    assert state[0].S.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


def test_official_parameter_groups():
    net = random_model()
    names = {id(p): n for n, p in net.named_parameters()}
    groups = {g["name"]: (g, sorted(names[id(p)] for p in g["params"])) for g in net.param_groups(1e-3, 0.1)}
    assert groups["w0"][1] == [f"blocks.{l}.att.w0" for l in range(3)]
    assert groups["w0"][0]["lr"] == 2e-3
    assert groups["matrix"][0]["weight_decay"] == 0.1
    assert all(n.endswith(".weight") for n in groups["matrix"][1])
    assert {"emb.weight", "head.weight", "blocks.1.ffn.key.weight"} <= set(groups["matrix"][1])
    assert groups["rest"][0]["weight_decay"] == 0
    assert {"blocks.1.att.w1", "blocks.1.att.r_k", "blocks.0.ln0.weight"} <= set(groups["rest"][1])
    assert sum(len(g[1]) for g in groups.values()) == len(names)


def test_save_writes_what_was_loaded(data, tmp_path):
    for name in ("rwkv7-tiny-834k/rwkv7-tiny-834K-L12-D64-V256.pth", "rwkv7-reverse/rwkv7-reverse-L4-D128-H64.pth"):
        RWKV7.load(data(name)).save(tmp_path / "copy.pth")
        a, b = (torch.load(p, weights_only=True) for p in (data(name), tmp_path / "copy.pth"))
        assert list(a) == list(b)
        assert all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_bf16_file_with_layer_0_v_keeps_its_layout(tmp_path):
    z = {k: t.bfloat16() for k, t in random_model().state_dict().items()}
    z = {"blocks.0.att.v0": torch.ones(1, 1, 128).bfloat16(), **z}
    torch.save(z, tmp_path / "a.pth")
    net = RWKV7.load(tmp_path / "a.pth")
    assert net.blocks[1].att.w0.dtype == torch.float32
    net.save(tmp_path / "b.pth")
    b = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(b) == list(z)
    assert all(torch.equal(b[k], z[k]) and b[k].dtype == torch.bfloat16 for k in z)


class TestBadCheckpoints:
    def fails(self, path, *words):
        with pytest.raises(UserError) as e:
            RWKV7.load(path)
        assert all(w in str(e.value) for w in (path.name, *words)), str(e.value)
        assert "\n" not in str(e.value)

    def test_missing_truncated_foreign(self, tmp_path):
        self.fails(tmp_path / "no.pth", "does not exist")
        random_model().save(tmp_path / "m.pth")
        whole = (tmp_path / "m.pth").read_bytes()
        for n in (0, 10, len(whole) // 2, len(whole) - 100):
            (tmp_path / "cut.pth").write_bytes(whole[:n])
            self.fails(tmp_path / "cut.pth", "truncated")
        torch.save({"emb.weight": torch.ones(5, 4), "blocks.0.att.time_decay": torch.ones(4)}, tmp_path / "v4.pth")
        self.fails(tmp_path / "v4.pth", "x070", "blocks.0.att.r_k")
        torch.save([1, 2], tmp_path / "list.pth")
        self.fails(tmp_path / "list.pth", "list")
        (tmp_path / "text.pth").write_text("hello world\n")
        self.fails(tmp_path / "text.pth", "not a .pth file")

    def test_wrong_missing_and_unknown_keys_are_named(self, tmp_path):
        z = random_model().state_dict()
        key = "blocks.1.ffn.value.weight"
        torch.save({**z, key: torch.ones(3, 3)}, tmp_path / "shape.pth")
        self.fails(tmp_path / "shape.pth", key, "(3, 3)", "(128, 512)")
        torch.save({k: t for k, t in z.items() if k != key}, tmp_path / "missing.pth")
        self.fails(tmp_path / "missing.pth", key, "missing", "(128, 512)")
        torch.save({**z, "blocks.1.att.k_extra": torch.ones(2)}, tmp_path / "extra.pth")
        self.fails(tmp_path / "extra.pth", "k_extra")
        torch.save({**z, "epoch": 3}, tmp_path / "number.pth")
        self.fails(tmp_path / "number.pth", "epoch", "not part of RWKV-7")

    def test_pickled_code_is_never_run(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        torch.save({"emb.weight": Bomb()}, tmp_path / "bomb.pth")
        self.fails(tmp_path / "bomb.pth", "refused")
        assert not (tmp_path / "ran").exists()


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    net = random_model(n_layer=1, n_embd=64)
    net.save(tmp_path / "m.pth")
    before = (tmp_path / "m.pth").read_bytes()

    def full(obj, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="no space left"):
        net.save(tmp_path / "m.pth")
    assert (tmp_path / "m.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]


def test_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="multiple of head_size"):
        RWKVConfig(2, 100, 10, 64)
    with pytest.raises(UserError, match="lengths"):
        random_model()(ids(4), lengths=[5])
