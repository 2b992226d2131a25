"""The wire between a text and frozen language models: an encoder, its latent vectors, and one adapter a model.

    text (n bytes, or n tokens of a model) -> encoder -> latents (M, D) -> adapter -> prefix (M, C), as if of M tokens

The encoder is a small bidirectional transformer, for bytes behind a strided convolution that makes one position of
`patch` bytes; M learned queries then pool its positions with attention. A query has a place in the text besides its
content: its scores fall with the squared distance, in segments of n/M positions, to the middle of segment m. So the
untrained encoder already cuts the text into M pieces, in order, and what training has to learn is which part of each
matters to the question. Queries without a place all start as the mean of the whole text and have to break that tie
first, which is how a collapse onto one constant prefix begins.
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from common.checkpoint import read_tensors
from common.errors import UserError
from common.files import replacing
from common.frozen_lm import FrozenLM
from common.tokenizer import utf8


def rotate(x):
    """Rotary positions: x (B, H, T, d), pairs of channels turn by t * 10000^(-2i/d) (arXiv 2104.09864)."""
    T, d = x.shape[-2:]
    angle = torch.arange(T, device=x.device)[:, None] * 1e4 ** (-torch.arange(0, d, 2, device=x.device) / d)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Block(nn.Module):
    """Bidirectional attention and a feed-forward layer, both behind a LayerNorm."""

    def __init__(self, D: int, n_head: int):
        super().__init__()
        self.n_head, self.ln1, self.ln2 = n_head, nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.ffn = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x, there=None):
        """x (B, T, D), there (B, T) True where a position counts, None = all."""
        q, k, v = self.qkv(self.ln1(x)).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        mask = None if there is None else there[:, None, None]
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).flatten(-2))
        return x + self.ffn(self.ln2(x))


class Pool(nn.Module):
    """M learned queries, each with a place in the text, over positions (B, T, D)."""

    def __init__(self, M: int, D: int, n_head: int):
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(M, D))  # small: at first only the place counts
        self.sharpness = nn.Parameter(torch.full((n_head,), math.log(math.e - 1)))  # softplus of it is 1
        self.kv, self.out = nn.Linear(D, 2 * D, bias=False), nn.Linear(D, D, bias=False)

    def forward(self, x, there):
        """x (B, T, D), there (B, T) -> pooled (B, M, D), weights (B, M, T), the mean of the heads', None."""
        (M, D), H = self.queries.shape, len(self.sharpness)
        k, v = self.kv(x).unflatten(-1, (2, H, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H)
        scores = self.queries.unflatten(-1, (H, -1)).transpose(0, 1) @ k.transpose(-1, -2) / math.sqrt(D / H)
        t = (torch.arange(x.shape[1], device=x.device) + 0.5) * M / there.sum(-1, keepdim=True)
        distance = t[:, None] - torch.arange(M, device=x.device)[:, None] - 0.5  # (B, M, T), in segments
        scores = scores - F.softplus(self.sharpness)[:, None, None] * distance.square()[:, None]
        weights = scores.masked_fill(~there[:, None, None], -torch.inf).softmax(-1)  # (B, H, M, T)
        return self.out((weights @ v).transpose(1, 2).flatten(-2)), weights.mean(1), None


class Select(nn.Module):
    """Keeps the M positions (B, T, D) of the highest scores, in the order of the text.

    If there are fewer, zeros come first. Nothing but keep_loss() teaches the scores: a choice has no gradient.
    """

    def __init__(self, M: int, D: int):
        super().__init__()
        self.M, self.score = M, nn.Linear(D, 1)

    def forward(self, x, there):
        """x (B, T, D), there (B, T) -> kept (B, M, D), weights (B, M, T) of 0 and 1, scores (B, T)."""
        scores = self.score(x)[..., 0].masked_fill(~there, -torch.inf)
        best = scores.topk(min(self.M, x.shape[1]), -1).indices
        kept = torch.zeros_like(there).scatter(1, best, True) & there  # (B, T)
        rank = kept.cumsum(1) + self.M - kept.sum(1, keepdim=True) - 1  # the last one kept is number M - 1
        weights = kept[:, None] & (rank[:, None] == torch.arange(self.M, device=x.device)[:, None])
        return weights.to(x) @ x, weights.to(x), scores


def matches(x, there):
    """Embeddings (B, T, C) -> (B, T, 3): cosine of the most similar other position, how far off it is, both multiplied.

    What the question asks for stands where its words come again, and a small encoder does not find that out itself.
    """
    z = F.normalize(x, dim=-1)
    same = (z @ z.transpose(1, 2)).masked_fill(~there[:, None] | torch.eye(x.shape[1], device=x.device).bool(), 0.0)
    cosine, where = same.max(-1)
    far = (where - torch.arange(x.shape[1], device=x.device)) / 100  # of the order of 1
    return torch.stack([cosine, far, cosine * far], -1)


class Encoder(nn.Module):
    """Bytes, or embeddings of models with these `widths`, -> M latents of width D; pool: place (Pool) or select."""

    def __init__(self, M: int, D: int, n_layer: int, n_head: int, patch: int, widths: list[int], pool: str):
        super().__init__()
        self.patch = patch
        if widths:
            self.embed, self.match = nn.ModuleList(nn.Linear(C, D) for C in widths), nn.Linear(3, D)
        else:
            self.embed = nn.Embedding(256, D)
            self.conv = nn.Conv1d(D, D, 2 * patch, stride=patch, padding=patch // 2)
        self.blocks = nn.ModuleList(Block(D, n_head) for _ in range(n_layer))
        self.ln, self.pool = nn.LayerNorm(D), Select(M, D) if pool == "select" else Pool(M, D, n_head)
        self.last, self.ln_out = Block(D, n_head), nn.LayerNorm(D)

    def forward(self, x, lengths: list[int], model: int = 0):
        """Bytes (B, T) or embeddings (B, T, C) of model number `model`, rows padded on the right; lengths: ints (B,).

        Returns latents (B, M, D), the weights (B, M, positions) with which they look at the text and, from Select,
        the scores (B, positions) of keeping one, else None.
        """
        n = torch.tensor(lengths, device=x.device)
        there = torch.arange(x.shape[1], device=x.device) < n[:, None]
        if x.dim() == 3:
            x = F.layer_norm(x, x.shape[-1:])  # models differ in the scale of their embeddings
            h = self.embed[model](x) + self.match(matches(x, there))
        else:
            h = self.embed(x) * there[..., None]  # what a convolution sees of the padding is zero for every T
            h = F.gelu(self.conv(F.pad(h, (0, 0, 0, -x.shape[1] % self.patch)).transpose(1, 2))).transpose(1, 2)
            there = torch.arange(h.shape[1], device=x.device) < -(-n // self.patch)[:, None]
        for block in self.blocks:
            h = block(h, there)
        z, weights, scores = self.pool(self.ln(h), there)
        return self.ln_out(self.last(z)), weights, scores


def calibrate(z, rms: float):
    """Prefixes (B, M, C), each scaled as a whole so that the root mean square of its elements is `rms`."""
    return z * (rms * torch.rsqrt(z.square().mean((1, 2), keepdim=True) + 1e-20))


class Adapter(nn.Module):
    """Latents (B, M, D) -> prefix (B, M, C) of RMS gain * scale * rms; the loss holds the trained `scale` near 1."""

    def __init__(self, D: int, C: int, rms: float, gain: float, zero: bool):
        super().__init__()
        self.rms, self.gain = rms, gain
        self.linear, self.scale = nn.Linear(D, C), nn.Parameter(torch.ones(()))
        if zero:  # the prefix starts as what it is added to
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, latents, base=None):
        z = self.rms * self.linear(latents)  # so that a rate means the same to models with small and large embeddings
        return self.gain * self.scale * calibrate(z if base is None else z + base, self.rms)


class Wire(nn.Module):
    """The encoder and the adapters of `lms`: everything that is trained.

    reader: bytes (one reading for all models), or tokens: each model's own frozen embeddings of its own tokens.
    skip (tokens only): the adapter adds to the embeddings themselves, pooled with the encoder's weights, so that
    training starts from mean-pooled text, or with pool="select" from M tokens of the text.
    """

    def __init__(self, lms: list[FrozenLM], M, D, n_layer, n_head, patch, reader: str, pool, skip: bool, gain: float):
        super().__init__()
        self.lms, self.M, self.reader, self.skip = lms, M, reader, skip  # a list: not a submodule, nothing of it trains
        widths = [lm.width for lm in lms] if reader == "tokens" else []
        self.encoder = Encoder(M, D, n_layer, n_head, patch, widths, pool)
        self.encoder.to(lms[0].device)
        self.adapters = nn.ModuleList(Adapter(D, lm.width, lm.rms, gain, skip).to(lm.device) for lm in lms)

    def forward(self, texts: list[str]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Texts -> for each model a prefix (B, M, C), fp32, on its device; with Select, for each reading its scores."""
        prefixes, scores = [], []
        for i, (lm, adapter) in enumerate(zip(self.lms, self.adapters, strict=True)):
            if self.reader == "tokens" or i == 0:  # bytes are read once for all models
                x, lengths = self.embedded(texts, lm)
                latents, weights, found = self.encoder(x, lengths, i)
                scores += [] if found is None else [found]
            base = (weights @ x).to(lm.device) if self.skip else None
            prefixes.append(adapter(latents.to(lm.device), base))
        return prefixes, scores

    def embedded(self, texts: list[str], lm: FrozenLM) -> tuple[torch.Tensor, list[int]]:
        """What the encoder reads, padded on the right: bytes (B, T), or embeddings (B, T, C) by `lm`; lengths."""
        if self.reader == "tokens":
            rows = [lm.embed_ids(lm.encode(t)).float() for t in texts]
        else:
            rows = [torch.tensor(list(utf8(t))) for t in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.lms[0].device), [len(r) for r in rows]

    @torch.no_grad()
    def encode(self, texts: list[str], bsz: int) -> list[torch.Tensor]:
        """The same for any number of texts, without gradients, on the CPU."""
        parts = [[p.cpu() for p in self(texts[i : i + bsz])[0]] for i in range(0, len(texts), bsz)]
        return [torch.cat(p) for p in zip(*parts, strict=True)]

    def scale_penalty(self) -> torch.Tensor:
        """Sum of (scale - 1)^2 over the adapters."""
        return sum((a.scale - 1).square().to(self.lms[0].device) for a in self.adapters)

    def parts(self) -> dict[str, nn.Module]:
        """{name of its file: module}."""
        adapters = {f"adapter_{lm.name}.pt": a for lm, a in zip(self.lms, self.adapters, strict=True)}
        return {"encoder.pt": self.encoder, **adapters}

    def save(self, folder: Path) -> None:
        for name, part in self.parts().items():
            with replacing(folder / name) as tmp:
                torch.save(part.state_dict(), tmp)

    def load(self, where: Path) -> "Wire":
        """Read what save() wrote, in `where` or its newest epoch-N; UserError if it is of other models or sizes."""
        epochs = sorted(where.glob("epoch-*"), key=lambda p: int(p.name.removeprefix("epoch-")))
        folder = epochs[-1] if epochs else where
        for name, part in self.parts().items():
            try:
                part.load_state_dict(read_tensors(folder / name))
            except RuntimeError as e:
                reason = str(e).strip().splitlines()[-1].strip()
                raise UserError(f"{folder / name} does not fit this config: {reason}") from e
        return self
