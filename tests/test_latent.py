"""LatentWire: frozen models as one interface, the wire and its losses."""

import hashlib
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F

from common import frozen_lm, latent, latent_targets
from common.errors import UserError
from common.tokenizer import Bytes
from conftest import ROOT, random_model
from model import FutureSeed, SeedConfig
from tasks import Example

TEXT = "Question: Who built the {} mill?\n\nContext:\nThe {} mill of Ulm was built by {} in 1{}.\n\n"
TEXTS = [
    TEXT.format(a, b, c, d) for a, b, c, d in (("old", "old", "Anna", 802), ("new", "very new and large", "Otto", 9))
]
ANSWERS = ["Anna", "Otto von"]
KINDS = ["rwkv", "llama", "qwen2"]


def byte_tokenizer():
    """Of transformers, one id a byte; needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tok.chat_template = "{{ bos_token }}[{{ messages[0]['content'] }}]{% if add_generation_prompt %}says:{% endif %}"
    return tok


def make(kind):
    """A small random model behind the interface, or a skip."""
    torch.manual_seed(7)
    if kind == "rwkv":
        return frozen_lm.RWKVLM("rwkv", random_model(2, 32, 256, 16), Bytes())
    transformers = pytest.importorskip("transformers", reason="transformers is optional and isn't installed")
    sizes = dict(vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, bos_token_id=256, eos_token_id=257, initializer_range=0.3)  # fmt: skip
    name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
    cfg = getattr(transformers, f"{name}Config")(**sizes)
    return frozen_lm.HuggingFaceLM(kind, getattr(transformers, f"{name}ForCausalLM")(cfg), byte_tokenizer())


@pytest.fixture(scope="module")
def all_lms():
    cache = {}
    return lambda kind: cache.setdefault(kind, None) or cache.__setitem__(kind, make(kind)) or cache[kind]


@pytest.fixture(params=KINDS)
def lm(request, all_lms):
    lm = all_lms(request.param)
    lm.set_frame("text", "Answer: ", "none")
    return lm


@pytest.fixture
def train():
    """The functions of train_latent.py, its configuration in `g`."""
    return runpy.run_path(str(ROOT / "train_latent.py"))


def wire_of(*lms, M=4, reader="bytes", pool="place", skip=False, gain=1.0):
    torch.manual_seed(1)
    return latent.Wire(list(lms), M, 16, 1, 2, 2, reader, pool, skip, gain)


def example(text, answer):
    return Example(text[:20], Bytes().encode(text + "Answer:"), [1], meta={"answers": [answer]})


ROWS = [example(t, a) for t, a in zip(TEXTS, ANSWERS, strict=True)]


def checksum(lm):
    h = hashlib.sha256()
    for p in lm.net.state_dict().values():
        h.update(p.numpy().tobytes())
    return h.hexdigest()


# --- frozen models
def contents(lm):
    return [lm.embed_ids(lm.encode(t)) for t in TEXTS]


def logits_of_ids(lm, ids):
    """By the model's own path for ids, without anything of the interface."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return lm.net.head(lm.net(tokens)[0])[0] if lm.name == "rwkv" else lm.net(input_ids=tokens).logits[0]


def test_text_embeddings_as_a_prefix_give_what_the_text_gives(lm):
    """Also: no row's logits depend on padding, left or right, or on its batch mates."""
    answers = [lm.answer(a) for a in ANSWERS]
    assert len(answers[0]) != len(answers[1])
    prompt = lm.prompt(contents(lm), False)
    got = lm.answer_logits(*prompt, answers)
    assert torch.allclose(lm.answer_logits(*prompt, [a[:1] for a in answers]), got[:, :1], atol=2e-4)
    first, state = lm.read(*prompt)
    for _ in range(2):  # a state stays what it was when something has followed it
        assert torch.allclose(
            lm.follow(first, state, answers)[0, : len(answers[0])], got[0, : len(answers[0])], atol=2e-4
        )
    for i, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        ids = lm.encode(text + "Answer:")
        want = logits_of_ids(lm, ids + answer[:-1])[len(ids) - 1 :]
        assert torch.allclose(got[i, : len(answer)], want, atol=2e-4), (got[i, : len(answer)] - want).abs().max()


def test_decoding_follows_teacher_forcing(lm):
    prompt, lengths = lm.prompt(contents(lm), True)
    assert lengths[0] != lengths[1]
    out = frozen_lm.generate(lm, *lm.read(prompt, lengths), 5, ban_eos=5)
    logits = lm.answer_logits(prompt, lengths, [[*ids, 0] for ids in out])
    logits[:, :, list(lm.eos_ids)] = -torch.inf
    assert [row[:5] for row in logits.argmax(-1).tolist()] == out


def test_an_answer_ends_where_it_may(lm, monkeypatch):
    (end,) = lm.eos_ids
    always = torch.full((2, 300), -9.0)
    always[:, end], always[:, 65], always[:, 66] = 3.0, 2.0, 1.9
    monkeypatch.setattr(lm, "next", lambda *_: (always[:, None].clone(), None))
    answer = lambda **options: frozen_lm.generate(lm, always, None, 6, **options)
    assert answer() == [[], []]
    assert answer(min_new=2, ban_eos=3) == answer(min_new=3, ban_eos=1) == [[65] * 3] * 2
    assert answer(ban_eos=9) == [[65] * 6] * 2
    g = torch.Generator().manual_seed(0)
    drawn = [answer(ban_eos=1, temperature=1.0, top_p=0.9, generator=g)[0] for _ in range(30)]
    assert {tuple(x) for x in drawn} >= {(65,), (66,)}, "only the first token is drawn"
    assert answer(ban_eos=1, temperature=1.0, top_p=0.01, generator=g)[0] == [65]


def test_frames(all_lms):
    rwkv = all_lms("rwkv")
    rwkv.set_frame("text", "Answer: ", "after")
    assert (rwkv.after[True], rwkv.after[False]) == (list(b"Answer:"), [*b"Answer:", 0])
    assert rwkv.answer("x") == [*b" x", 0], "the space goes with the answer"
    assert rwkv.answer("x", close=False) == [*b" x"]
    rwkv.set_frame("none", "Answer: ", "before")
    assert (rwkv.before[False], rwkv.before[True], rwkv.after[False], rwkv.answer("x")) == ([0], [], [], [*b"x", 0])
    rwkv.set_frame("chat", "Answer: ", "none")
    assert bytes(rwkv.before[False]) == b"User: "
    assert bytes(rwkv.after[True]) == b"\n\nAssistant:"
    assert rwkv.answer("x") == [*b" x", 0]
    llama = all_lms("llama")
    llama.set_frame("chat", "Answer: ", "before")
    assert llama.decode(llama.before[False]) == "["
    assert llama.before[False].count(llama.bos_id) == 1, "the template has it already"
    assert llama.decode(llama.after[False]) == "]says:"
    rwkv.set_frame("text", 'It is "', "none", '"')
    assert rwkv.answer("x") == [*b'x"']
    assert rwkv.answer("x", close=False) == [*b"x"]
    assert rwkv.answer_text([*b' a b" is\nc']) == "a b"
    for lm, start in ((rwkv, []), (llama, llama.text_start)):
        lm.set_frame("text", "Answer: ", "text")
        assert lm.before[False] == lm.before[True] == start


def test_rms_is_that_of_the_input_embeddings(lm):
    table = lm.net.emb.weight if lm.name == "rwkv" else lm.net.get_input_embeddings().weight
    assert lm.rms == pytest.approx(table.square().mean().sqrt().item(), rel=1e-5)


def test_rwkv_reads_a_prefix_through_future_seed(tmp_path, all_lms):
    plain = all_lms("rwkv")
    plain.set_frame("text", "Answer: ", "none")
    plain.net.save(tmp_path / "m.pth")
    load = lambda seeded: frozen_lm.load(str(tmp_path / "m.pth"), torch.float32, torch.device("cpu"), seeded=seeded)
    with pytest.raises(UserError, match=r"no .*seed\.pt"):
        load(True)
    FutureSeed(SeedConfig(alpha_init=2.0), plain.net.cfg).save(tmp_path / "seed.pt")
    args = (*plain.prompt(contents(plain), False), [plain.answer(a) for a in ANSWERS])
    same, other = load(False).answer_logits(*args), load(True).answer_logits(*args)
    assert torch.equal(same, plain.answer_logits(*args))
    assert not torch.allclose(same, other, atol=1e-2)


def test_models_of_transformers_load_from_a_directory(tmp_path, all_lms):
    llama = all_lms("llama")
    llama.net.save_pretrained(tmp_path / "tiny")
    llama.tok.save_pretrained(tmp_path / "tiny")
    loaded = frozen_lm.load(str(tmp_path / "tiny"), torch.float32, torch.device("cpu"))
    assert checksum(loaded) == checksum(llama)
    assert (loaded.name, loaded.eos_ids, loaded.encode("Ü b")) == ("tiny", {257}, llama.encode("Ü b"))
    assert loaded.decode(loaded.encode("Ü b")) == "Ü b"


def test_without_transformers_the_rest_works(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails now
    runpy.run_path(str(ROOT / "train_latent.py"))
    with pytest.raises(UserError, match="pip install transformers"):
        frozen_lm.load("some/model", torch.float32, torch.device("cpu"))


# --- the wire
@pytest.mark.parametrize(
    ("reader", "pool", "skip"),
    [("bytes", "place", False), ("tokens", "place", False), ("tokens", "place", True), ("tokens", "select", True)],
)
def test_a_prefix_does_not_depend_on_batch_mates(all_lms, reader, pool, skip):
    wire = wire_of(all_lms("rwkv"), reader=reader, pool=pool, skip=skip)
    short = TEXTS[0][:31]  # not a multiple of the patch
    (alone,), (together,) = wire([short])[0], wire([short, TEXTS[1]])[0]
    assert torch.allclose(alone[0], together[0], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_prefix_has_the_rms_it_should(all_lms):
    wire = wire_of(all_lms("rwkv"), gain=1.15)
    with torch.no_grad():
        wire.adapters[0].scale.fill_(2.0)
    rms = wire(TEXTS)[0][0].square().mean((1, 2)).sqrt()
    assert torch.allclose(rms, torch.full((2,), 1.15 * 2.0 * all_lms("rwkv").rms), rtol=1e-5)
    assert wire.scale_penalty().item() == 1.0


def test_with_skip_the_untrained_prefix_is_the_text_in_pieces(all_lms):
    lm = all_lms("rwkv")
    text = "a" * 20 + "b" * 20 + "c" * 20 + "d" * 20
    wire = wire_of(lm, reader="tokens", skip=True)
    prefix, letters = wire([text])[0][0][0], lm.embed_ids([*b"abcd"])
    match = F.cosine_similarity(prefix[:, None], letters[None], dim=-1)
    assert match.argmax(-1).tolist() == [0, 1, 2, 3]
    assert match.diagonal().min() > 0.8
    assert torch.allclose(latent_targets.pool_text(lm.embed_ids([*text.encode()]), 4), letters, atol=1e-6)
    one = latent_targets.pool_text(lm.embed_ids([*b"ab"]), 4)
    assert torch.equal(one, letters[[0, 0, 1, 1]]), "a text shorter than the prefix is stretched"


def test_selection_keeps_the_best_positions_in_order(all_lms):
    lm = all_lms("rwkv")
    wire = wire_of(lm, M=3, reader="tokens", pool="select", skip=True)
    (prefix,), (scores,) = wire(["abcdef", "xy"])
    best = "".join("abcdef"[i] for i in sorted(scores[0].topk(3).indices.tolist()))
    similarity = F.cosine_similarity(prefix[0], lm.embed_ids([*best.encode()]), dim=-1)
    assert torch.allclose(similarity, torch.ones(3), atol=1e-5), "untrained, it is embeddings of the text"
    assert prefix[1, 0].abs().max() == 0, "a shorter text comes after zeros"
    assert F.cosine_similarity(prefix[1, 1:], lm.embed_ids([*b"xy"]), dim=-1).min() > 0.999


def test_what_is_worth_keeping_is_learnt(all_lms):
    """The question, and of the context the sentence with the answer, both of which the score alone can find again."""
    context, question = "It rained. The mill was built by Anna in May. It stands near Ulm.", "Question: Who built it?\n"
    text = f"{context}\n\n{question}"
    spans = latent_targets.relevant(text, question, "Anna")
    assert [text[a:b].strip() for a, b in spans] == [question.strip(), "Anna", "The mill was built by Anna in May."]
    assert latent_targets.relevant(text, question, "yes") == spans[:1], "an answer that is not in the text"
    wire = wire_of(all_lms("rwkv"), M=len(text) // 2, reader="tokens", pool="select", skip=True)
    optimizer, losses = torch.optim.AdamW(wire.parameters(), 0.01), []
    for _ in range(60):
        scores = wire([text])[1]
        loss = latent_targets.keep_loss(wire, scores, [(text, spans)])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.2 * losses[0]
    at = text.index("Anna")
    assert scores[0][0, at : at + 4].min() > 0 > scores[0][0, :9].max()


@pytest.mark.parametrize(("reader", "pool"), [("bytes", "place"), ("tokens", "place"), ("tokens", "select")])
def test_gradients_reach_encoder_and_adapters_only(train, all_lms, lm, reader, pool):
    lms = [lm] if lm.name == "rwkv" else [all_lms("rwkv"), lm]
    for m in lms:
        m.set_frame("text", "Answer: ", "after")
    before, wire = [checksum(m) for m in lms], wire_of(*lms, reader=reader, pool=pool, skip=reader == "tokens")
    optimizer = torch.optim.AdamW(wire.parameters(), 0.01)
    g = train["answer_loss"].__globals__
    g.update(kl_weight=1.0, kl_tokens=2)
    teachers, losses = [latent_targets.Teacher(m, 2) for m in lms], []
    for step in range(12):
        losses.append(train["training_step"](wire, ROWS, teachers))
        for name, p in wire.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0 or (step == 0 and reader == "tokens"), name  # the zero adapters hide others
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    for m, was in zip(lms, before, strict=True):
        assert checksum(m) == was
        assert all(p.grad is None and not p.requires_grad for p in m.net.parameters())


def test_model_after_model_gives_the_gradient_of_the_sum(train, all_lms):
    other = frozen_lm.RWKVLM("other", random_model(2, 48, 256, 16, seed=3), Bytes())
    lms = [all_lms("rwkv"), other]
    for m in lms:
        m.set_frame("text", "Answer: ", "none")
    wire = wire_of(*lms)
    with torch.no_grad():
        wire.adapters[1].scale.fill_(1.5)
    loss = train["training_step"](wire, ROWS, [None, None])
    got = {n: p.grad.clone() for n, p in wire.named_parameters()}
    wire.zero_grad()
    total = sum(train["answer_loss"](m, p, ROWS) for m, p in zip(lms, wire(TEXTS)[0], strict=True))
    total = total + 0.05 * 0.5**2
    assert loss == pytest.approx(total.item(), rel=1e-6)
    (total + 0.05 * (wire.adapters[1].scale - 1) ** 2).backward()
    for name, p in wire.named_parameters():
        assert torch.allclose(p.grad, got[name], atol=1e-5, rtol=1e-4), name


def test_the_loss_is_a_sum_over_answer_tokens_and_nothing_else(train, lm):
    """Two rows with answers of unequal length, against each row alone: padding has no share."""
    g, prefix = train["answer_loss"].__globals__, torch.stack([c[:40] for c in contents(lm)])
    g.update(first_weight=0.0)
    alone = [train["answer_loss"](lm, prefix[i : i + 1], ROWS[i : i + 1]).item() for i in range(2)]
    lengths = [len(lm.answer(a)) for a in ANSWERS]
    both = train["answer_loss"](lm, prefix, ROWS).item()
    assert both == pytest.approx(sum(a * n for a, n in zip(alone, lengths, strict=True)) / sum(lengths), rel=1e-5)
    g.update(first_weight=1.0)
    logits = lm.answer_logits(*lm.prompt(list(prefix), False), [lm.answer(a) for a in ANSWERS])
    first = F.cross_entropy(logits[:, 0], torch.tensor([lm.answer(a)[0] for a in ANSWERS])).item()
    assert train["answer_loss"](lm, prefix, ROWS).item() == pytest.approx(both + first, rel=1e-5)


def test_divergence_from_the_teacher(all_lms):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 40, generator=g).log_softmax(-1) for _ in range(2))
    top = a.topk(40)
    whole = F.kl_div(b, a, log_target=True, reduction="sum").item()
    assert latent_targets.divergence(b, *top).item() == pytest.approx(whole, abs=1e-3)
    assert latent_targets.divergence(a, *a.topk(6)).item() == pytest.approx(0, abs=1e-5)
    partial = latent_targets.divergence(b, *a.topk(6)).item()
    assert 0 < partial < whole, "merging tokens can only hide a difference"
    teacher = latent_targets.Teacher(all_lms("rwkv"), 2)
    logp, ids = teacher("row", TEXTS[0], [65, 66, 67])
    assert logp.shape == ids.shape == (2, 64)
    assert teacher("row", "", [])[0] is logp, "remembered"


@pytest.mark.parametrize("reader", ["bytes", "tokens"])
def test_the_warm_start_approaches_pooled_text(all_lms, reader):
    wire = wire_of(all_lms("rwkv"), reader=reader)
    optimizer, losses = torch.optim.AdamW(wire.parameters(), 0.01), []
    for _ in range(40):
        loss = latent_targets.pooling_loss(wire, TEXTS)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > 1, "unrelated directions are 2 apart"
    assert losses[-1] < 0.3 * losses[0]
