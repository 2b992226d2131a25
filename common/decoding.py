"""What a model answers after a prompt that has been read: freely, in its blanks, or by choice among options."""

import torch

from model import LayerState


def decode(net, h, state, rows, eot: int, max_new: int, contrast=(0, 0)) -> list[tuple[list[int], list[float]]]:
    """Greedy: answers up to end-of-text or max_new tokens, or the best token at each blank; and at each of their
    tokens the log-odds of the two tokens of `contrast`, log p(first) - log p(second).

    h: hidden states (B, P, C) of prompts that end at P; state: after them; rows: their Examples, all of one kind.
    """
    odds = lambda logits: (logits[:, contrast[0]].float() - logits[:, contrast[1]].float()).tolist()
    if rows[0].blanks:
        blanks = [[h.shape[1] - len(e.prompt) + p for p in e.blanks] for e in rows]
        at_blanks = (net.head(h[i, at]) for i, at in enumerate(blanks))
        return [(logits.argmax(-1).tolist(), odds(logits)) for logits in at_blanks]
    logits, out, unfinished = net.head(h[:, -1]), [([], []) for _ in rows], set(range(len(rows)))
    for _ in range(max_new):
        token = logits.argmax(-1)
        for i, (t, x) in enumerate(zip(token.tolist(), odds(logits), strict=True)):
            if t == eot:
                unfinished.discard(i)
            elif i in unfinished:
                out[i][0].append(t)
                out[i][1].append(x)
        if not unfinished:
            break
        logits, state = net.step(token, state)
    return out


def likeliest(net, h, state, rows) -> list[int]:
    """For each row, the index of the option with the highest summed log-likelihood after the prompt.

    Every option is read from the prompt's state, all of them as one batch. Arguments as of decode().
    """
    options, row = [o for e in rows for o in e.options], [i for i, e in enumerate(rows) for _ in e.options]
    logp = net.head(h[row, -1]).float().log_softmax(-1)
    score = logp[range(len(options)), [o[0] for o in options]]
    if A := max(map(len, options)) - 1:
        pad = lambda ids: ids + [0] * (A - len(ids))
        inputs, targets = (torch.tensor([pad(o[i : len(o) - 1 + i]) for o in options], device=h.device) for i in (0, 1))
        mask = torch.tensor([[j < len(o) - 1 for j in range(A)] for o in options], device=h.device)
        hidden, _ = net(inputs, [LayerState(*(t[row] for t in layer)) for layer in state])
        for t in range(A):  # a token at a time: one row of logits an option
            logp = net.head(hidden[:, t]).float().log_softmax(-1)
            score = score + mask[:, t] * logp.gather(-1, targets[:, t : t + 1]).squeeze(-1)
    out, start = [], 0
    for e in rows:
        out.append(int(score[start : start + len(e.options)].argmax()))
        start += len(e.options)
    return out
