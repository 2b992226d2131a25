"""What a wire is trained toward besides answers: mean-pooled text, what is worth keeping, what the text itself says."""

import torch
import torch.nn.functional as F

from common.frozen_lm import FrozenLM
from common.latent import Wire, calibrate
from common.tokenizer import utf8


# --- warm start
def pool_text(embeddings, M: int):
    """Embeddings (n, C) of a text -> (M, C): means of M pieces in order, which overlap if M does not divide n."""
    return F.adaptive_avg_pool1d(embeddings.T[None], M)[0].T


def mixed(texts: list[str], more: str, max_bytes: int, random) -> list[str]:
    """The texts, every other one replaced by a piece of `more`, 100 to max_bytes long, if there is any."""
    texts = list(texts)
    for i in range(0, len(texts) if more else 0, 2):
        start, n = random.integers(max(1, len(more) - 200)), random.integers(100, max_bytes)
        texts[i] = utf8(more[start : start + n])[:max_bytes].decode(errors="ignore")
    return texts


def pooling_loss(wire: Wire, texts: list[str]) -> torch.Tensor:
    """Mean squared difference between prefixes and mean-pooled text, both of RMS 1."""
    total = 0.0
    for lm, prefix in zip(wire.lms, wire(texts)[0], strict=True):
        target = torch.stack([pool_text(lm.embed_ids(lm.encode(t)).float(), wire.M) for t in texts])
        difference = calibrate(prefix, 1.0) - calibrate(target, 1.0)
        total = total + difference.square().mean().to(wire.lms[0].device)
    return total / len(wire.lms)


# --- what is worth keeping
def relevant(text: str, question: str, answer: str) -> list[tuple[int, int]]:
    """Places (start, end) in characters: of the question, and of the answer's first occurrence and its sentence."""
    at = text.find(question.strip())
    spans = [(at, at + len(question.strip()))]
    if (at := text.find(answer)) >= 0:
        start, end = text.rfind(". ", 0, at) + 1, text.find(". ", at + len(answer)) + 1
        spans += [(at, at + len(answer)), (start, end or len(text))]
    return spans


def keep_loss(wire: Wire, scores: list[torch.Tensor], rows: list[tuple[str, list]]) -> torch.Tensor:
    """Binary cross-entropy of the scores against relevant() places; rows: (text, spans). Answers count five times.

    scores: (B, T) of each model's tokens, -inf where a text is over. A token belongs to a span by how many tokens the
    text before the span's ends has, which is exact to a token.
    """
    total = 0.0
    for lm, s in zip(wire.lms, scores, strict=True):
        there, target, weight = s.isfinite(), torch.zeros_like(s), torch.ones_like(s)
        for i, (text, spans) in enumerate(rows):
            for n, span in enumerate(spans):
                start, end = (len(lm.encode(text[:place])) for place in span)
                target[i, start:end] = 1
                if n == 1:
                    weight[i, start:end] = 5
        s, target, weight = s[there], target[there], weight[there]
        loss = F.binary_cross_entropy_with_logits(s, target, weight, reduction="sum")
        total = total + loss / weight.sum()
    return total / len(scores)


# --- the text-prompted teacher
class Teacher:
    """What a model says to the first k answer tokens when it reads the text, remembered from its first use on.

    Row by row: what it says may not depend on a batch, or a resumed run would see something else. Only its KEPT
    likeliest tokens are remembered, and all others as one.
    """

    KEPT = 64

    def __init__(self, lm: FrozenLM, k: int):
        self.lm, self.k, self.known = lm, k, {}

    @torch.no_grad()
    def __call__(self, name: str, text: str, answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Row `name` -> log-probabilities and ids of the likeliest tokens, (min(k, len(answer)), KEPT) both."""
        if name not in self.known:
            prompt = self.lm.prompt([self.lm.embed_ids(self.lm.encode(text))], True)
            logp = self.lm.answer_logits(*prompt, [answer[: self.k]])[0].log_softmax(-1)
            self.known[name] = tuple(logp.topk(min(self.KEPT, logp.shape[-1])))
        return self.known[name]


def divergence(logp, teacher_logp, ids) -> torch.Tensor:
    """KL(teacher || student), summed over R tokens: logp (R, V) of the student, teacher_logp and ids (R, KEPT)."""
    rest = lambda x: torch.log1p(-x.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    ours = logp.gather(-1, ids)
    ours, theirs = torch.cat([ours, rest(ours)], -1), torch.cat([teacher_logp, rest(teacher_logp)], -1)
    return (theirs.exp() * (theirs - ours)).sum()
