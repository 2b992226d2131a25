"""Free decoding and the choice among options, against one sequence at a time."""

import pytest
import torch

from common.batches import left_pad
from common.decoding import decode, likeliest
from conftest import random_model
from tasks import Example


def read(net, rows):
    prompts, lengths = left_pad([e.prompt for e in rows])
    return net(prompts, lengths=lengths)


def log_likelihood(net, prompt, option):
    h, _ = net(torch.tensor([[*prompt, *option]]))
    logp = net.head(h[0]).float().log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(option))


@torch.no_grad()
def test_the_likeliest_option_is_that_of_one_sequence_at_a_time():
    net, g = random_model(), torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(50, (n,), generator=g).tolist()
    seen = set()
    for lengths in ((1, 1, 1), (3, 1, 2, 5), (2, 2)):
        rows = [Example(str(i), ids(2 + 3 * i), ids(1), options=[ids(n) for n in lengths[: 2 + i]]) for i in range(4)]
        scores = [[log_likelihood(net, e.prompt, o) for o in e.options] for e in rows]
        want = [max(range(len(s)), key=s.__getitem__) for s in scores]
        assert likeliest(net, *read(net, rows), rows) == want
        seen.update(want)
    assert len(seen) > 1, "the test should not be passed by a constant"


@torch.no_grad()
def test_decoding_a_batch_is_decoding_each_row():
    net, g = random_model(), torch.Generator().manual_seed(1)
    rows = [Example(str(i), torch.randint(50, (n,), generator=g).tolist(), [1]) for i, n in enumerate((2, 9, 5))]
    together = decode(net, *read(net, rows), rows, eot=-1, max_new=6, contrast=(7, 3))
    for e, (ids, odds) in zip(rows, together, strict=True):
        ((alone, found),) = decode(net, *read(net, [e]), [e], eot=-1, max_new=6, contrast=(7, 3))
        assert (len(ids), ids) == (6, alone)
        assert odds == pytest.approx(found, abs=1e-4)
        whole = net.head(net(torch.tensor([e.prompt + ids]))[0][0, len(e.prompt) - 1 : -1])  # as one would by hand
        assert odds == pytest.approx((whole[:, 7] - whole[:, 3]).tolist(), abs=1e-4)
    eot = together[1][0][2]
    stopped = decode(net, *read(net, rows), rows, eot=eot, max_new=6)
    n = together[1][0].index(eot)
    assert stopped[1] == (together[1][0][:n], [0.0] * n)  # no tokens to contrast


@torch.no_grad()
def test_blanks_are_read_where_they_stand():
    net = random_model()
    rows = [Example("a", [3, 1, 4, 1, 5], [9, 9], blanks=[1, 3]), Example("b", [2, 7], [9], blanks=[0])]
    h, state = read(net, rows)
    alone = [net.head(net(torch.tensor([e.prompt]))[0][0])[e.blanks] for e in rows]
    for logits, (ids, odds) in zip(alone, decode(net, h, state, rows, eot=0, max_new=1, contrast=(2, 5)), strict=True):
        assert ids == logits.argmax(-1).tolist()
        assert odds == pytest.approx((logits[:, 2] - logits[:, 5]).tolist(), abs=1e-4)
