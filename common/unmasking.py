"""Filling in masks: all at once, in rounds by confidence, or as an assignment of given tokens to places.

The rounds follow LLaDA (arXiv 2502.09992: a fixed number of steps, the most confident tokens stay, block by block) and
tiny-diffusion (whatever is confident enough stays; confidence is the probability of the top k together).
"""

import torch

from common.batches import left_pad
from common.errors import UserError


def logits_at(net, seed, tokens, lengths, at, mask_id: int):
    """fp32 logits (R, V) of the positions that at (B, T) picks in tokens (B, T); a mask is never an answer."""
    h, _ = net(tokens, lengths=lengths, seed=seed)
    logits = net.head(h[at]).float()
    logits[:, mask_id] = -torch.inf
    return logits


def draw(logits, temperature: float, top_k: int, generator):
    """Logits (R, V) -> a token for each row, and how confident that is: the probability of the top_k together."""
    p, ids = logits.softmax(-1).topk(min(top_k, logits.shape[1]))
    if temperature == 0:
        return ids[:, 0], p.sum(-1)
    choice = torch.multinomial((p.log() / temperature).softmax(-1).cpu(), 1, generator=generator).to(ids.device)
    return ids.gather(-1, choice)[:, 0], p.sum(-1)


@torch.no_grad()
def unmask(net, seed, rows, mask_id: int, rounds=0, threshold=0.9, block=0, temperature=0.0, top_k=1, generator=None):
    """Fill the masks of `rows` (lists of ids) round by round; yields the rows after each round, until none is left.

    rounds: at most so many a block, the work spread evenly over them (1 = all at once); 0 = no bound. Every round
    keeps what is at least `threshold` confident, and the most confident in any case. block: so many masks of a row at
    a time, from the left; 0 = all. temperature, top_k: tokens are drawn among the top_k; 0 = the likeliest.
    A round reads the whole rows again, at the price of a prompt.
    """
    if rounds < 0 or block < 0 or top_k < 1 or temperature < 0:
        raise UserError(f"rounds={rounds}, block={block}, temperature={temperature} or top_k={top_k} is out of range")
    tokens, lengths = left_pad(rows)
    tokens = tokens.to(net.emb.weight.device)
    inside = torch.arange(tokens.shape[1]) >= tokens.shape[1] - torch.tensor(lengths)[:, None]
    masked = (tokens == mask_id) & inside.to(tokens.device)
    number = (masked.cumsum(1) - 1) // block if block else torch.zeros_like(tokens)  # of the block a mask belongs to
    number = number.masked_fill(~masked, len(tokens[0]))
    done, now = torch.zeros_like(tokens[:, :1]), number.amin(1, keepdim=True)
    while masked.any():
        logits = logits_at(net, seed, tokens, lengths, masked, mask_id)
        drawn, sure = tokens.clone(), torch.full_like(tokens, -1, dtype=torch.float32)
        drawn[masked], sure[masked] = draw(logits, temperature, top_k, generator)
        open_ = masked & (number == now)
        sure = sure.masked_fill(~open_, -1.0)
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        left = open_.sum(1, keepdim=True)
        least = -(-left // (rounds - done).clamp(min=1)) if rounds else 1
        reveal = open_ & ((sure >= threshold) & (rounds != 1) | (rank < least))
        tokens, masked = torch.where(reveal, drawn, tokens), masked & ~reveal
        number = number.masked_fill(~masked, len(tokens[0]))
        following = number.amin(1, keepdim=True)
        done, now = torch.where(following == now, done + 1, 0), following
        yield [row[-n:] for row, n in zip(tokens.tolist(), lengths, strict=True)]


@torch.no_grad()
def assign(net, seed, examples, mask_id: int) -> list[list[int]]:
    """Answers that use every allowed token once: the assignment of highest likelihood, read off one pass.

    examples: with meta["slots"], which of the blanks take part, and meta["choices"], the tokens to be put there, as
    many. The other blanks get their likeliest token. Needs SciPy; UserError without it, or without such examples.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise UserError("decoding by assignment needs SciPy: pip install scipy, or leave out 'assignment'") from e
    if any("slots" not in e.meta or "choices" not in e.meta for e in examples):
        raise UserError("this task does not say which tokens go where: leave out the decoder 'assignment'")
    tokens, lengths = left_pad([e.prompt for e in examples])
    tokens, blank = tokens.to(net.emb.weight.device), torch.zeros(tokens.shape, dtype=torch.bool)
    for row, e in zip(blank, examples, strict=True):
        row[[p - len(e.prompt) for p in e.blanks]] = True
    all_logits, out = logits_at(net, seed, tokens, lengths, blank.to(tokens.device), mask_id), []
    for e, logits in zip(examples, all_logits.split([len(e.blanks) for e in examples]), strict=True):
        answer, logp = logits.argmax(-1).tolist(), logits.log_softmax(-1).cpu().numpy()
        slots, choices = e.meta["slots"], e.meta["choices"]
        for i, j in zip(*linear_sum_assignment(-logp[slots][:, choices]), strict=True):
            answer[slots[i]] = choices[j]
        out.append(answer)
    return out
