"""The C++ decoder against RWKV7.step, which it replaces."""

import json

import numpy as np
import pytest
import torch

from common.batches import left_pad
from common.errors import UserError
from conftest import random_model
from model import RWKV7, FutureSeed, SeedConfig
from wkv_cuda import backend
from wkv_cuda.decode import Decoder, TorchDecoder, decoder_for

pytestmark = pytest.mark.skipif(backend() != "cpp", reason="the C++ backend is not in use here")

# relative to the largest logit or state of a random model, which amplifies: measured 1e-6, 1e-2 and 5e-2 at most
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "int8": 1e-1}


def ids(*shape, V=50, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def error(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def after_prompt(net, B, T=9, **kw):
    with torch.no_grad():
        return net(ids(B, T, V=net.cfg.vocab_size), **kw)[1]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("B", [1, 3, 5])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_embd=64, head_size=16),
        dict(n_embd=192, head_size=32, w_rank=8, a_rank=24, v_rank=1, g_rank=65, n_ffn=320),
        dict(n_embd=128, head_size=64, vocab_size=5),
        dict(n_embd=256, head_size=128, n_layer=2),
    ],
)
@torch.inference_mode()
def test_equals_step(sizes, B, dtype):
    net = random_model(**sizes)
    state = after_prompt(net, B)
    given, before = state, [t.clone() for layer in state for t in layer]
    session, decoder = Decoder(net, dtype).start(state), Decoder(net, dtype)
    mine = state
    for token in ids(4, B, V=net.cfg.vocab_size, seed=1):
        want, state = net.step(token, state)
        got = session.next(token)
        alone, mine = decoder.step(token, mine)
        assert torch.equal(alone, got)
        assert error(got, want) < TOLERANCE[dtype]
        for a, b in zip(session.state, state, strict=True):
            assert all(error(x, y) < TOLERANCE[dtype] for x, y in zip(a, b, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, [t for layer in given for t in layer], strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_neither_threads_nor_the_batch_change_a_bit(dtype):
    net = random_model(n_embd=128, head_size=32, vocab_size=700)
    state, tokens = after_prompt(net, 6), ids(6)
    decoder, results = Decoder(net, dtype), []
    decoder.bytes = 2**30  # or so small a model would be decoded by one thread
    try:
        for threads in (1, 2, 3, 8, 8, 8):
            torch.set_num_threads(threads)
            logits, after = decoder.step(tokens, state)
            results.append(torch.cat([logits.flatten(), *(t.flatten() for layer in after for t in layer)]))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(r, results[0]) for r in results)
    for b in range(6):
        alone, _ = decoder.step(tokens[b : b + 1], [type(s)(*(t[b : b + 1] for t in s)) for s in state])
        assert torch.equal(alone[0], logits[b])


def test_golden_logits_of_a_trained_checkpoint(data):
    net = RWKV7.load(data("rwkv7-tiny-834k/rwkv7-tiny-834K-L12-D64-V256.pth"))
    want = np.fromfile(data("rwkv7-tiny-834k/expected-logits-7v0-834K.bin"), dtype=np.float32)
    for dtype, bound in (("float32", 2e-6), ("bfloat16", 2e-6), ("int8", 0.05)):  # its weights are bf16 numbers
        session = Decoder(net, dtype).start(net.zero_state(1))
        for byte in b'"in':
            logits = session.next(torch.tensor([byte]))
        assert np.abs(logits[0].numpy() - want).max() < bound, dtype
        assert logits.argmax() == want.argmax()


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.inference_mode()
def test_trained_reverser_writes_the_same_text(data, dtype):
    net = RWKV7.load(data("rwkv7-reverse/rwkv7-reverse-L4-D128-H64.pth"))
    lines = data("rwkv7-reverse/reverse_eval_seed42_600.jsonl").read_text().splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    encode = lambda s: ["0123456789,#".index(c) for c in s]
    decoder = Decoder(net, dtype, round_model=dtype == "int8")
    tokens, lengths = left_pad([encode(r["prompt"]) for r in rows])
    logits, state = net.prefill(tokens, lengths=lengths)
    session, text = decoder.start(state), []
    for _ in range(max(len(r["target"]) for r in rows)):
        text.append(logits.argmax(-1))
        logits = session.next(text[-1])
    text = torch.stack(text, dim=1).tolist()
    assert all(line[: len(r["target"])] == encode(r["target"]) for line, r in zip(text, rows, strict=True))


@torch.inference_mode()
def test_continues_a_seeded_prompt():
    net = random_model()
    seed = FutureSeed(SeedConfig(alpha_init=1.0), net.cfg)
    texts = []
    for decoder in (TorchDecoder(net), Decoder(net)):
        logits, state = net.prefill(ids(1, 12), seed=seed)
        session, text = decoder.start(state), []
        for _ in range(30):
            text.append(logits.argmax(-1))
            logits = session.next(text[-1])
        texts.append(torch.cat(text))
    assert torch.equal(*texts)
    plain, _ = net.prefill(ids(1, 12))
    assert not torch.allclose(plain, net.prefill(ids(1, 12), seed=seed)[0])


def test_int8_rounds_by_half_a_step_and_the_model_alike():
    net = random_model(n_embd=128)
    weight = net.blocks[1].ffn.key.weight
    before = weight.detach().clone()
    Decoder(net, "int8")
    assert torch.equal(weight, before)
    decoder = Decoder(net, "int8", round_model=True)
    step = before.abs().amax(1, keepdim=True) / 127
    assert 0.4 < ((weight - before).abs() / step).max() < 0.501
    state, token = after_prompt(net, 2), ids(2)  # torch with the rounded weights computes what the decoder does
    with torch.no_grad():
        assert error(decoder.step(token, state)[0], net.step(token, state)[0]) < 1e-5


def test_weights_are_used_where_they_are_if_they_can_be():
    for dtype in (torch.float32, torch.bfloat16):
        net = random_model().to(dtype)
        decoder, state = Decoder(net, str(dtype).removeprefix("torch.")), random_model().zero_state(1)
        before = decoder.step(ids(1), state)[0]
        with torch.no_grad():
            net.head.weight.zero_()
        assert before.any()
        assert not decoder.step(ids(1), state)[0].any()


def test_mistakes(monkeypatch):
    net = random_model()
    state = net.zero_state(2)
    with pytest.raises(UserError, match="'int4' is unknown: use one of float32"):
        Decoder(net, "int4")
    with torch.device("meta"), pytest.raises(UserError, match="the model is on meta"):
        Decoder(random_model().to("meta"))
    with pytest.raises(UserError, match="multiples of 64"):
        Decoder(random_model(n_embd=96, head_size=32), "int8")
    assert isinstance(decoder_for(random_model(n_embd=96, head_size=24), "float32"), TorchDecoder)
    decoder = Decoder(net)
    for wrong in (state[:-1], [], random_model(n_embd=64).zero_state(2), net.zero_state(0)):
        with pytest.raises(UserError, match="the state does not fit"):
            decoder.start(wrong)
    for token in (torch.tensor([1, 50]), torch.tensor([-1, 0]), torch.tensor([1]), torch.tensor([0.5, 1])):
        with pytest.raises(UserError, match="2 token ids from 0 to 49"):
            decoder.start(state).next(token)
    monkeypatch.setattr("wkv_cuda.decode.backend", lambda: "torch")
    with pytest.raises(UserError, match=r"C\+\+"):
        decoder_for(net, "int8")
    assert isinstance(decoder_for(net, "bfloat16"), TorchDecoder)
