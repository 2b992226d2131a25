"""RWKV-7 (x070) with Future-Seed: the whole model in one file.

RWKV-7 keeps, per layer and head, a matrix state S[value, key] and reads left to right, one token at a time:

    S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T ,   y_t = S_t r_t ,   d_t = exp(-exp(w_t))

Future-Seed changes one thing: where a layer's scan of the *prompt* starts. Plain RWKV-7 starts at zero; here layer l
starts from what the layer below concluded about the whole prompt, so it reads knowing what is coming:

    S_0(l) = clip( g_l * norm( S_P(l-1) ), +-c )          for l >= layer_start >= 1, else 0
    g_l[h] = seed_scale * m_l * sigmoid( alpha_l[h] + <x_last, u_l> / sqrt(C) + beta_l )

S_P(l-1) is the state of the layer below after the row's own last prompt token. What follows the prompt
(answer, decoding) continues from S_P and the token-shift states, and is ordinary RWKV-7.

Symbols: B batch, T tokens, C width, H heads, N head size, L layers, V vocabulary, P prompt length; r w k v a b are the
operands of the recurrence, g the output gate, kk the removal key, v_first layer 0's values. Parameter names are the
checkpoint keys of BlinkDL/RWKV-LM, whose .pth files load and save as they are. The model: arXiv 2503.14456.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from common.batches import padding
from common.checkpoint import check_shapes, infer_sizes, read_tensors
from common.errors import UserError
from common.files import replacing
from wkv_cuda import glue
from wkv_cuda.attractor import Attracted, wkv7_from


@dataclass
class RWKVConfig:
    n_layer: int
    n_embd: int
    vocab_size: int
    head_size: int = 64
    n_ffn: int = 0  # 0 = 4 * n_embd
    w_rank: int = 0  # ranks of the low-rank pairs; 0 = the official suggestion for this width
    a_rank: int = 0
    v_rank: int = 0
    g_rank: int = 0

    def __post_init__(self):
        if self.n_embd % self.head_size:
            raise UserError(f"n_embd {self.n_embd} must be a multiple of head_size {self.head_size}")
        self.n_ffn = self.n_ffn or 4 * self.n_embd
        for name, scale in (("w_rank", 2.5), ("a_rank", 2.5), ("v_rank", 1.7), ("g_rank", 5.0)):
            rank = max(32, round(scale * self.n_embd**0.5 / 32) * 32)
            setattr(self, name, getattr(self, name) or rank)


class LayerState(NamedTuple):
    """What one layer carries from a segment to the next; in the order of pip rwkv's state list."""

    x_att: torch.Tensor  # (B, C) last input of the time mix, for its token shift
    S: torch.Tensor  # (B, H, N, N) fp32, [value, key]
    x_ffn: torch.Tensor  # (B, C) last input of the channel mix


wide = lambda t: t.to(torch.promote_types(t.dtype, torch.float32))  # at least fp32


class Linear(nn.Linear):
    """fp32 master weights are cast to the dtype of x at use. Always without bias."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """In fp32, whatever comes in; the caller chooses what to cast the result to."""

    def forward(self, x):
        return F.layer_norm(wide(x), self.normalized_shape, wide(self.weight), wide(self.bias), self.eps)


# Between the matrix products. On a CPU the class named by @fused computes what the function says, in one pass.
@glue.fused(glue.Mix)
def mix(x, x_prev, *coefs):
    """Token shift: x (B, T, C) and the token before it, x_prev (B, C) before the first, blended, once for each coef."""
    dx = torch.cat([x_prev[:, None], x[:, :-1]], dim=1) - x
    return tuple(x + dx * c.to(x.dtype) for c in coefs)


@glue.fused(glue.Operands)
def operands(k, v, w, a, v_low, v_first, w0, a0, v0, k_k, k_a, H, pad):
    """Key, value and the outputs of the low-rank pairs, all (B, T, C) -> the recurrence's w k v a b (B, T, C)."""
    w = (-F.softplus(-(wide(w0) + w)) - 0.5).to(k.dtype)  # decay >= exp(-exp(-0.5)) = 0.545
    a = torch.sigmoid(wide(a0) + a).to(k.dtype)
    if v_low is not None:
        v = v + (v_first - v) * torch.sigmoid(wide(v0) + v_low).to(v.dtype)
    kk = F.normalize((k * k_k.to(k.dtype)).unflatten(-1, (H, -1)), dim=-1).flatten(-2)
    k = k * (1 + (a - 1) * k_a.to(k.dtype))
    a, b = -kk, kk * a
    if pad is not None:  # a padded step is the identity: no decay, nothing removed, nothing written
        w, (k, v, a, b) = w.masked_fill(pad, -torch.inf), (t.masked_fill(pad, 0) for t in (k, v, a, b))
    return w, k, v, a, b


@glue.fused(glue.Readout)
def readout(y, r, k, v, g, r_k, weight, bias, eps):
    """y = S r (B, T, C), normalised head by head, and the token's own <r, k> v, gated by g."""
    (H, N), heads = r_k.shape, lambda t: t.unflatten(-1, r_k.shape)
    normed = F.group_norm(wide(y).reshape(-1, H * N), H, wide(weight), wide(bias), eps).view(y.shape)
    bonus = (wide(heads(r)) * heads(k) * r_k).sum(-1, keepdim=True) * heads(v)
    return (normed + bonus.flatten(-2)).to(g.dtype) * g


relu_squared = glue.fused(glue.ReluSquared)(lambda x: F.relu(x).square())


class TimeMix(nn.Module):
    def __init__(self, cfg: RWKVConfig, layer: int):
        super().__init__()
        C, N = cfg.n_embd, cfg.head_size
        self.first = layer == 0
        for name in "rwkvag":
            self.register_parameter(f"x_{name}", nn.Parameter(torch.empty(1, 1, C)))
        for name, rank in (("w", cfg.w_rank), ("a", cfg.a_rank), ("v", cfg.v_rank), ("g", cfg.g_rank)):
            if name == "v" and self.first:  # layer 0 makes v_first, it has nothing to mix it with
                continue
            if name != "g":
                self.register_parameter(f"{name}0", nn.Parameter(torch.empty(1, 1, C)))
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(C, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, C)))
        self.k_k = nn.Parameter(torch.empty(1, 1, C))
        self.k_a = nn.Parameter(torch.empty(1, 1, C))
        self.r_k = nn.Parameter(torch.empty(C // N, N))
        self.receptance, self.key, self.value, self.output = (Linear(C, C, False) for _ in range(4))
        self.ln_x = nn.GroupNorm(C // N, C, eps=1e-5 * N)  # 64e-5 at the official head size

    def low_rank(self, name, x, act=None):
        x = x @ getattr(self, f"{name}1").to(x.dtype)
        return (act(x) if act else x) @ getattr(self, f"{name}2").to(x.dtype)

    def forward(self, x, x_prev, S, v_first, pad):
        """x (B, T, C), x_prev (B, C), S (B, H, N, N), pad (B, T, 1) or None -> out (B, T, C), S, v_first."""
        ln, H, heads = self.ln_x, len(self.r_k), lambda t: t.unflatten(-1, self.r_k.shape)
        xr, xw, xk, xv, xa, xg = mix(x, x_prev, self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w, a = self.low_rank("w", xw, torch.tanh), self.low_rank("a", xa)
        g = self.low_rank("g", xg, torch.sigmoid)
        v_low, v0 = (None, None) if self.first else (self.low_rank("v", xv), self.v0)
        v_first = v if self.first else v_first
        w, k, v, a, b = operands(k, v, w, a, v_low, v_first, self.w0, self.a0, v0, self.k_k, self.k_a, H, pad)
        y, S = wkv7_from(heads(r), heads(w), heads(k), heads(v), heads(a), heads(b), S)
        return self.output(readout(y.flatten(-2), r, k, v, g, self.r_k, ln.weight, ln.bias, ln.eps)), S, v_first


class ChannelMix(nn.Module):
    def __init__(self, cfg: RWKVConfig):
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(1, 1, cfg.n_embd))
        self.key, self.value = Linear(cfg.n_embd, cfg.n_ffn, False), Linear(cfg.n_ffn, cfg.n_embd, False)

    def forward(self, x, x_prev):
        (xk,) = mix(x, x_prev, self.x_k)
        return self.value(relu_squared(self.key(xk)))


class Block(nn.Module):
    def __init__(self, cfg: RWKVConfig, layer: int):
        super().__init__()
        if layer == 0:
            self.ln0 = LayerNorm(cfg.n_embd)
        self.ln1, self.ln2 = LayerNorm(cfg.n_embd), LayerNorm(cfg.n_embd)
        self.att, self.ffn = TimeMix(cfg, layer), ChannelMix(cfg)

    def forward(self, x, state, S0, v_first, pad, dtype):
        """The residual stream x (B, T, C) stays fp32; the mixes run in `dtype`."""
        x_att, x_ffn = state.x_att.to(dtype), state.x_ffn.to(dtype)
        h = self.ln1(x).to(dtype) if pad is None else torch.where(pad, x_att[:, None], self.ln1(x).to(dtype))
        dx, S, v_first = self.att(h, x_att, S0, v_first, pad)
        x, x_att = x + dx, h[:, -1]
        h = self.ln2(x).to(dtype) if pad is None else torch.where(pad, x_ffn[:, None], self.ln2(x).to(dtype))
        return x + self.ffn(h, x_ffn), LayerState(x_att, S, h[:, -1]), v_first


# ----------------------------------------------------------------------------------------------------------------------
# Future-Seed


@dataclass
class SeedConfig:
    layer_start: int = 1  # first layer (0-based) that starts from a seed; 1 .. n_layer-1
    gate: str = "scalar"  # scalar: one alpha a layer; head: one a layer and head
    alpha_init: float = -2.0  # sigmoid(-2) = 0.12
    input_gate: bool = False  # let the gate also look at x_last
    seed_scale: float = 1.0
    schedule: str = "none"  # m_l over depth (not over steps): none, linear, cos
    m_min: float = 1.0
    m_max: float = 1.0
    norm: bool = True  # divide by the RMS of each head's N x N matrix
    detach: bool = False  # stop the gradient at S_P(l-1)
    clip: float = 0.0  # elementwise bound after the gate; 0 = off
    form: str = "start"  # start | attractor: S_0 is the seed without its gate, and what S decays towards is the seed


class FutureSeed(nn.Module):
    """The gate parameters of Future-Seed and the seed itself; saved in its own file, never in the .pth.

    `control` replaces the source of the seed, to tell what the effect is due to: "none" (the definition), "other row"
    (the state of the next row of the batch) or "random" (noise with each head's own norm).
    """

    def __init__(self, cfg: SeedConfig, model_cfg: RWKVConfig):
        super().__init__()
        L, C, H = model_cfg.n_layer, model_cfg.n_embd, model_cfg.n_embd // model_cfg.head_size
        if not 1 <= cfg.layer_start < L:
            raise UserError(f"layer_start {cfg.layer_start} seeds no layer of a {L}-layer model: use 1 to {L - 1}")
        for name, known in (("gate", "scalar head"), ("schedule", "none linear cos"), ("form", "start attractor")):
            if getattr(cfg, name) not in known.split():
                raise UserError(f"seed {name} {getattr(cfg, name)!r} is unknown: use {known.replace(' ', ' or ')}")
        self.cfg, self.n_layer, self.control = cfg, L, "none"
        n = L - cfg.layer_start
        self.alpha = nn.Parameter(torch.full((n, H if cfg.gate == "head" else 1), float(cfg.alpha_init)))
        if cfg.input_gate:  # zero: training starts at the plain gate
            self.u, self.beta = nn.Parameter(torch.zeros(n, C)), nn.Parameter(torch.zeros(n, 1))

    def depth_scale(self, l: int) -> float:
        """m_l: 1, or a ramp from m_min at layer_start to m_max at the last layer."""
        cfg, last = self.cfg, self.n_layer - 1
        p = (l - cfg.layer_start) / (last - cfg.layer_start) if last > cfg.layer_start else 1.0
        p = {"none": None, "linear": p, "cos": (1 - math.cos(math.pi * p)) / 2}[cfg.schedule]
        return 1.0 if p is None else cfg.m_min + (cfg.m_max - cfg.m_min) * p

    def gate(self, l: int, x_last=None) -> torch.Tensor:
        """The effective gate g_l, (1 or B, 1 or H); without x_last (B, C) the input gate's data term is left out."""
        i = l - self.cfg.layer_start
        logit = self.alpha[i][None]
        if self.cfg.input_gate:
            logit = logit + self.beta[i]
            if x_last is not None:
                logit = logit + x_last.float() @ self.u[i, :, None] / math.sqrt(self.u.shape[1])
        return self.cfg.seed_scale * self.depth_scale(l) * torch.sigmoid(logit)

    def forward(self, l: int, S, x_last):
        """S_P of the layer below (B, H, N, N) fp32, residual stream at the prompt's end (B, C) -> start of layer l."""
        cfg = self.cfg
        if self.control == "other row":
            if len(S) < 2:
                raise UserError("the control 'other row' needs at least 2 rows in a batch")
            S = S.roll(1, dims=0)
        elif self.control == "random":
            noise = torch.randn_like(S)
            S = noise * (S.norm(dim=(-2, -1), keepdim=True) / noise.norm(dim=(-2, -1), keepdim=True))
        S = S.detach() if cfg.detach else S
        if cfg.norm:
            S = S * torch.rsqrt(S.square().mean(dim=(-2, -1), keepdim=True) + 1e-6**2)  # smooth at S = 0
        seed = (self.gate(l, x_last)[..., None, None] * S).clamp(-(cfg.clip or math.inf), cfg.clip or math.inf)
        return seed if cfg.form == "start" else Attracted(cfg.seed_scale * S, seed)

    def save(self, path, **extra) -> None:
        """Write seed.pt: the gate's configuration and parameters, and whatever plain values come with them."""
        with replacing(path) as tmp:
            torch.save({"config": asdict(self.cfg), "params": self.state_dict(), **extra}, tmp)

    @staticmethod
    def load(path, model_cfg: RWKVConfig) -> "FutureSeed":
        saved = read_tensors(path)
        try:
            seed = FutureSeed(SeedConfig(**saved["config"]), model_cfg)
            seed.load_state_dict(saved["params"])
        except (KeyError, TypeError, RuntimeError) as e:
            raise UserError(f"{path} does not fit this model: {str(e).strip().splitlines()[-1].strip()}") from e
        return seed


# ----------------------------------------------------------------------------------------------------------------------
# the model


class RWKV7(nn.Module):
    def __init__(self, cfg: RWKVConfig):
        super().__init__()
        self.cfg = cfg
        self.dtype = torch.float32  # what the mixes compute in; parameters may stay fp32 (master weights)
        self.checkpointing = False  # recompute each block in the backward pass instead of keeping its activations
        self.emb = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.blocks = nn.ModuleList(Block(cfg, l) for l in range(cfg.n_layer))
        self.ln_out = LayerNorm(cfg.n_embd)
        self.head = Linear(cfg.n_embd, cfg.vocab_size, False)
        self.file_layout: list[tuple[str, torch.dtype]] | None = None  # keys and dtypes of the .pth that was loaded
        self.unused: dict[str, torch.Tensor] = {}  # layer 0's v0 v1 v2, which official files carry and nobody reads

    def zero_state(self, B: int) -> list[LayerState]:
        H, N, ref = self.cfg.n_embd // self.cfg.head_size, self.cfg.head_size, self.ln_out.weight
        x, S = ref.new_zeros(B, self.cfg.n_embd), ref.new_zeros(B, H, N, N, dtype=torch.float32)
        return [LayerState(x, S, x) for _ in self.blocks]

    def forward(self, tokens, state=None, lengths=None, seed=None):
        """Read one segment.

        tokens (B, T) ids, or (B, T, C) embeddings; state: one LayerState a layer, None = zeros; lengths: ints (B,),
        rows are left-padded to T and padding leaves no trace; seed: a FutureSeed, for a prompt read from its beginning.
        Returns the hidden states after ln_out (B, T, C) (feed the rows you want to `head`) and the new state.
        """
        x = self.emb(tokens) if tokens.dim() == 2 else tokens
        if seed is not None and state is not None:
            raise UserError("a seed starts a prompt from its beginning: it can't be combined with a carried state")
        state = self.zero_state(len(x)) if state is None else state
        if x.shape[1] == 0:  # nothing to read
            return x.to(self.dtype), state
        x, pad, v_first, S_below, new_state = self.blocks[0].ln0(x), padding(lengths, x), None, None, []
        for l, block in enumerate(self.blocks):
            S0 = state[l].S
            if seed is not None and l >= seed.cfg.layer_start:  # Future-Seed, all of it
                S0 = seed(l, S_below, x[:, -1])
            args = (x, state[l], S0, v_first, pad, self.dtype)
            if self.checkpointing and torch.is_grad_enabled():
                x, layer_state, v_first = checkpoint(block, *args, use_reentrant=False)
            else:
                x, layer_state, v_first = block(*args)
            S_below = layer_state.S
            new_state.append(layer_state)
        return self.ln_out(x).to(self.dtype), new_state

    def prefill(self, prompt, lengths=None, seed=None):
        """Prompt (B, P), left-padded if `lengths` says so -> fp32 logits of the next token (B, V), state."""
        h, state = self(prompt, lengths=lengths, seed=seed)
        return self.head(h[:, -1]).float(), state

    def step(self, token, state):
        """One token a row (B,) -> fp32 logits of the next (B, V), state. Ordinary RWKV-7, seeded or not."""
        h, state = self(token[:, None], state)
        return self.head(h[:, -1]).float(), state

    @torch.no_grad()
    def init_weights(self) -> "RWKV7":
        """The official initialisation for training from scratch (RWKV-v7/train_temp/src/model.py)."""
        cfg = self.cfg
        C, L, N = cfg.n_embd, cfg.n_layer, cfg.head_size
        i = torch.arange(C, dtype=torch.float32)
        ramp, linear = (i / C).view(1, 1, C), i / max(C - 1, 1) - 0.5
        zigzag = ((i % N) - (N - 1) / 2) / max((N - 1) / 2, 0.5)
        zigzag = zigzag * zigzag.abs()
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5 * math.sqrt(max(1.0, cfg.vocab_size / C)))
        for l, block in enumerate(self.blocks):
            att, ffn, depth, rest = block.att, block.ffn, l / max(L - 1, 1), 1 - l / L  # 0 to 1; 1 to almost 0
            for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
                getattr(att, f"x_{name}").copy_(1 - ramp ** (power * rest))
            ffn.x_k.copy_(1 - ramp ** (rest**4))
            att.w0.copy_(-6 + 6 * (i / max(C - 1, 1)) ** (1 + depth**0.3) + 0.5 + zigzag * 2.5)
            att.a0.copy_(-0.19 + zigzag * 0.3 + linear * 0.4)
            for name in "wag" if att.first else "wavg":
                getattr(att, f"{name}1").zero_()
                w2 = getattr(att, f"{name}2")
                nn.init.orthogonal_(w2, gain=0.1 * max(1.0, w2.shape[0] / w2.shape[1]) ** 0.5)
            if not att.first:
                att.v0.copy_(0.73 - linear * 0.4)
            att.k_k.copy_(0.71 - linear * 0.1)
            att.k_a.fill_(1.02)
            att.r_k.fill_(-0.04)
            att.ln_x.weight.fill_(((1 + l) / L) ** 0.7)
            for matrix, gain in ((att.receptance, 1.0), (att.key, 0.1), (att.value, 1.0), (ffn.key, 1.0)):
                nn.init.orthogonal_(matrix.weight, gain=gain)
            att.output.weight.zero_()
            ffn.value.weight.zero_()
        return self

    def param_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """The official groups: weight decay on matrices called *.weight only, att.w0 at twice the rate."""
        groups = {"matrix": [], "w0": [], "rest": []}
        for name, p in self.named_parameters():
            kind = "w0" if name.endswith("att.w0") else "matrix" if ".weight" in name and p.dim() >= 2 else "rest"
            groups[kind].append(p)
        rates = {"matrix": (lr, weight_decay), "w0": (2 * lr, 0.0), "rest": (lr, 0.0)}
        return [dict(name=n, params=p, lr=rates[n][0], weight_decay=rates[n][1]) for n, p in groups.items()]

    def save(self, path) -> None:
        """Write an official .pth: the keys, order and dtypes of the file that was loaded, fp32 if there was none."""
        tensors = {**self.unused, **self.state_dict()}
        layout = self.file_layout or [(k, torch.float32) for k in tensors]
        with replacing(path) as tmp:
            torch.save({k: tensors[k].detach().to("cpu", dtype).contiguous() for k, dtype in layout}, tmp)

    @staticmethod
    def load(path, dtype: torch.dtype = torch.float32) -> "RWKV7":
        """Read an official x070 .pth; every size is inferred. Parameters become `dtype` (fp32 to train).

        Raises UserError if the file is missing, truncated, holds pickled code, or is not an x070 checkpoint.
        """
        z = read_tensors(path)
        with torch.device("meta"):
            model = RWKV7(RWKVConfig(**infer_sizes(path, z)))
        expected = {k: tuple(t.shape) for k, t in model.state_dict().items()}
        optional = {f"blocks.0.att.v{i}" for i in range(3)}
        check_shapes(path, z, expected, optional)
        model.load_state_dict({k: z[k].to(dtype, copy=True) for k in expected}, assign=True)
        model.file_layout = [(k, t.dtype) for k, t in z.items()]
        model.unused = {k: z[k].clone() for k in optional if k in z}
        return model
