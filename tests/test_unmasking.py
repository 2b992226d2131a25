"""Filling in masks: in rounds against a plain loop over one row, by assignment against all permutations."""

import itertools

import pytest
import torch

from common.errors import UserError
from common.unmasking import assign, draw, unmask
from conftest import random_model
from model import FutureSeed, SeedConfig
from tasks import Example

MASK, V = 49, 50


def make_rows(g, shapes):
    """Rows of (length, masks), the masks anywhere."""
    rows = []
    for n, masks in shapes:
        row = torch.randint(V - 1, (n,), generator=g).tolist()
        for p in torch.randperm(n, generator=g)[:masks].tolist():
            row[p] = MASK
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def net_and_seed():
    net = random_model()
    with torch.no_grad():
        net.head.weight.mul_(8)  # some confidence, so that thresholds matter
    return net, FutureSeed(SeedConfig(alpha_init=1.0), net.cfg)


def one_row(net, seed, row, rounds, threshold, block):
    """The same in words of one row: the list of its states."""
    row, states = list(row), []
    blocks = [p for p, t in enumerate(row) if t == MASK]
    blocks = [blocks[i : i + (block or len(blocks))] for i in range(0, len(blocks), block or len(blocks))]
    for places in blocks:
        done = 0
        while left := [p for p in places if row[p] == MASK]:
            with torch.no_grad():
                h, _ = net(torch.tensor([row]), seed=seed)
                logits = net.head(h[0]).float()
            logits[:, MASK] = -torch.inf
            p, t = logits.softmax(-1).max(-1)
            order = sorted(left, key=lambda i: -p[i].item())
            least = -(-len(left) // max(rounds - done, 1)) if rounds else 1
            keep = order[:least] + [i for i in order[least:] if p[i] >= threshold and rounds != 1]
            for i in keep:
                row[i] = t[i].item()
            done += 1
            states.append(list(row))
    return states


@pytest.mark.parametrize(
    ("rounds", "threshold", "block"), [(0, 0.05, 0), (0, 2.0, 0), (3, 2.0, 0), (3, 0.04, 4), (1, 0.0, 0), (0, 0.05, 3)]
)
def test_rounds_of_a_ragged_batch_are_those_of_each_row(net_and_seed, rounds, threshold, block):
    rows = make_rows(torch.Generator().manual_seed(3), [(12, 7), (20, 9), (5, 1), (9, 9)])
    states = list(unmask(*net_and_seed, rows, MASK, rounds, threshold, block))
    alone = [one_row(*net_and_seed, row, rounds, threshold, block) for row in rows]
    assert len(states) == max(map(len, alone))
    for number, state in enumerate(states):
        assert state == [s[min(number, len(s) - 1)] for s in alone]
    assert not any(MASK in row for row in states[-1])
    assert all(
        t in (MASK, s) for row, full in zip(rows, states[-1], strict=True) for t, s in zip(row, full, strict=True)
    )
    if rounds:
        blocks = -(-9 // block) if block else 1
        assert len(states) <= rounds * blocks


def test_one_round_at_a_time_reveals_only_one_and_feeds_it_back(net_and_seed):
    (row,) = make_rows(torch.Generator().manual_seed(5), [(14, 6)])
    states = [s[0] for s in unmask(*net_and_seed, [row], MASK, threshold=2.0)]
    assert [sum(t == MASK for t in s) for s in states] == [5, 4, 3, 2, 1, 0]
    (at_once,) = (s[0] for s in unmask(*net_and_seed, [row], MASK, rounds=1))
    assert at_once != states[-1], "what was revealed must have been read"


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 3), (0.5, 3), (2.0, 4), (1.0, 9)])
def test_draws_follow_the_temperature_among_the_top_k(temperature, top_k):
    logits, n = torch.tensor([0.3, 2.0, -1.0, 1.5, 1.0, -2.0]), 20_000
    tokens, sure = draw(logits.expand(n, -1), temperature, top_k, torch.Generator().manual_seed(0))
    p, best = logits.softmax(-1), logits.argsort(descending=True)[:top_k]
    expected = torch.zeros(6)
    expected[best] = (p[best].log() / temperature).softmax(-1)
    shares = tokens.bincount(minlength=6) / n
    assert not shares[expected == 0].any()
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=4 * (0.25 / n) ** 0.5)  # 4 standard deviations
    assert sure.tolist() == pytest.approx([p[best].sum().item()] * n)


def test_without_a_temperature_the_likeliest_is_taken():
    tokens, sure = draw(torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.1, 0.2]]).log(), 0.0, 2, None)
    assert tokens.tolist() == [1, 0]
    assert sure.tolist() == pytest.approx([0.9, 0.9])


def test_draws_repeat_with_their_seed(net_and_seed):
    row = make_rows(torch.Generator().manual_seed(6), [(10, 4)])
    drawn = lambda s: list(unmask(*net_and_seed, row, MASK, temperature=1.0, top_k=3, threshold=2.0,
                                  generator=torch.Generator().manual_seed(s)))[-1]  # fmt: skip
    assert drawn(0) == drawn(0)
    assert len({str(drawn(s)) for s in range(20)}) > 3


def test_nothing_to_fill_yields_nothing_and_bad_options_are_one_sentence(net_and_seed):
    assert list(unmask(*net_and_seed, [[1, 2, 3]], MASK)) == []
    for bad in (dict(rounds=-1), dict(block=-2), dict(top_k=0), dict(temperature=-1.0)):
        with pytest.raises(UserError, match="out of range"):
            list(unmask(*net_and_seed, [[1, MASK]], MASK, **bad))


def test_assignment_is_the_likeliest_of_all_permutations(net_and_seed):
    pytest.importorskip("scipy")
    g, net, seed = torch.Generator().manual_seed(7), *net_and_seed
    examples = []
    for n, slots in ((9, [0, 2, 3, 4]), (14, [1, 2, 3])):
        (prompt,) = make_rows(g, [(n, 5)])
        blanks = [i for i, t in enumerate(prompt) if t == MASK]
        choices = torch.randint(V - 1, (len(slots),), generator=g).tolist()
        examples.append(Example(str(n), prompt, [0] * 5, blanks, dict(slots=slots, choices=choices)))
    got = assign(net, seed, examples, MASK)
    for e, answer in zip(examples, got, strict=True):
        with torch.no_grad():
            h, _ = net(torch.tensor([e.prompt]), seed=seed)
            logits = net.head(h[0, e.blanks]).float()
        logits[:, MASK] = -torch.inf
        logp, slots = logits.log_softmax(-1), e.meta["slots"]
        best = max(itertools.permutations(e.meta["choices"]),
                   key=lambda c: sum(logp[s, t].item() for s, t in zip(slots, c, strict=True)))  # fmt: skip
        assert [answer[s] for s in slots] == list(best)
        assert all(answer[i] == logits[i].argmax() for i in range(5) if i not in slots)
    with pytest.raises(UserError, match="does not say which tokens"):
        assign(net, seed, [Example("x", [MASK], [1], [0])], MASK)
