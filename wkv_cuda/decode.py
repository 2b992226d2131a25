"""Decoding on the CPU in one C++ call a token: every layer and the head, with fp32, bf16 or int8 weights.

    decoder = Decoder(model, "int8")
    logits, state = model.prefill(prompt, seed=seed)  # reading a prompt stays with torch
    session = decoder.start(state)
    logits = session.next(token)                      # as often as you like; session.state is the state after it

Decoding is bound by reading the weights, so fewer bytes are more tokens a second. Only weights are rounded (emb never
is); activations, sums and the state are fp32 at every dtype. decode.cpp does the work.
"""

import ctypes

import torch

from common.errors import UserError
from model import RWKV7, LayerState
from wkv_cuda import backend, cpp

DTYPES = ("float32", "bfloat16", "int8")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of decode.cpp
LANES, WORDS = 16, 16  # every size that decode.cpp runs along is a multiple of LANES; words in a group of int8 weights
BYTES_A_THREAD = 2**21  # of weights a token; below it a thread waits for the others longer than it helps

# Fields of struct Layer in decode.cpp, in its order. Low-rank pairs: down to the rank, then up to the width again.
VECTORS = (
    *("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", *(f"att.x_{n}" for n in "rwkvag")),
    *("att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "att.r_k", "att.ln_x.weight", "att.ln_x.bias", "ffn.x_k"),
)
MATRICES = (
    *(f"att.{n}.weight" for n in ("receptance", "key", "value", "output")),
    *(f"ffn.{n}.weight" for n in ("key", "value")),
)
LOW_RANK = tuple(f"att.{n}{i}" for i in (1, 2) for n in "wavg")


class Decoder:
    """The weights of an RWKV7 as decode.cpp wants them.

    dtype "float32" or "bfloat16": matrices that already have this dtype are used where they are, others are copied.
    "int8": matrices are rounded to 8 bits with one scale a row, att.value and the low-rank pairs to bf16.
    round_model: write the rounded weights into `model` as well. A prompt is best read with the very weights that
    continue it, for the state has to mean the same to both. Whoever wants the memory of the model back can delete it:
    what is used is kept. `bytes` is what one token reads of the matrices.
    Raises UserError for a model that is not on the CPU, an unknown dtype, sizes that are no multiples of 16, or where
    the C++ backend is not in use.
    """

    def __init__(self, model: RWKV7, dtype: str = "float32", round_model: bool = False):
        cfg, self.library = model.cfg, cpp.library() if backend() == "cpp" else None
        if dtype not in DTYPES:
            raise UserError(f"decoding in {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
        if model.emb.weight.device.type != "cpu":
            raise UserError(
                f"decoding in {dtype} by C++ is for the CPU, the model is on {model.emb.weight.device}: move it there,"
                " or use model.step"
            )
        if self.library is None:
            raise UserError(f"decoding in {dtype} needs the C++ backend, which is not in use here: use model.step")
        unit = 4 * LANES if dtype == "int8" else LANES
        if cfg.head_size % LANES or cfg.n_embd % unit or cfg.n_ffn % unit:
            raise UserError(
                f"decoding in {dtype} needs n_embd ({cfg.n_embd}) and n_ffn ({cfg.n_ffn}) that are multiples of {unit},"
                f" and head_size ({cfg.head_size}) of {LANES}: use model.step"
            )
        self.cfg, kind = cfg, getattr(torch, dtype)
        low_kind = torch.bfloat16 if kind == torch.int8 else kind
        z = model.state_dict()
        emb = z["emb.weight"].contiguous()
        emb = emb if emb.dtype in KINDS else emb.float()
        self.kept = [emb]  # every tensor that C++ has a pointer to
        matrices = self.pack(z, kind, low_kind, round_model)
        vector = lambda name: self.keep(z[name].float().contiguous()) if name in z else 0
        pointers = [emb.data_ptr(), *map(vector, ("blocks.0.ln0.weight", "blocks.0.ln0.bias"))]
        pointers += [*map(vector, ("ln_out.weight", "ln_out.bias")), *matrices["head.weight"]]
        for l in range(cfg.n_layer):
            pointers += [vector(f"blocks.{l}.{name}") for name in VECTORS]
            for name in (*MATRICES, *LOW_RANK):
                pointers += matrices.get(f"blocks.{l}.{name}", (0, 0))
        self.model = (ctypes.c_void_p * len(pointers))(*pointers)
        ranks = [padded(getattr(cfg, f"{n}_rank")) for n in "wavg"]
        sizes = [cfg.n_layer, cfg.n_embd, cfg.vocab_size, cfg.n_embd // cfg.head_size, cfg.head_size, cfg.n_ffn, *ranks]
        sizes += [KINDS[kind], KINDS[low_kind], KINDS[emb.dtype]]
        self.sizes = (ctypes.c_int64 * len(sizes))(*sizes)

    def keep(self, t) -> int:
        self.kept.append(t)
        return t.data_ptr()

    def pack(self, z, kind, low_kind, round_model) -> dict[str, tuple[int, int]]:
        """-> for each matrix its address and that of its scales; `bytes`."""
        names = [f"blocks.{l}.{n}" for l in range(self.cfg.n_layer) for n in (*MATRICES, *LOW_RANK)] + ["head.weight"]
        names = [name for name in names if name in z]
        low = {n for n in names if n[-1] in "12"}  # transposed, to be rows as well, and padded
        shape = {n: tuple(map(padded, z[n].T.shape)) if n in low else tuple(z[n].shape) for n in names}
        # What v is made of goes into the state and stays there: rounded to 8 bits it is what costs accuracy most
        dtype = {n: low_kind if n in low or n.endswith("att.value.weight") else kind for n in names}
        size = {n: shape[n][0] * shape[n][1] * dtype[n].itemsize for n in names}
        in_place = {n for n in names if n not in low and z[n].dtype == dtype[n] and z[n].is_contiguous()}
        # one block for all copies, in the order of use: pages as large as can be
        block = torch.empty(sum(size[n] for n in names if n not in in_place), dtype=torch.uint8)
        self.library.dll.decode_huge_pages(self.keep(block), len(block))
        at, addresses, self.bytes = 0, {}, sum(size.values())
        for n in names:
            if n in in_place:
                addresses[n] = (self.keep(z[n]), 0)
                self.library.dll.decode_huge_pages(addresses[n][0], size[n])
                continue
            to = block[at : at + size[n]].view(dtype[n]).view(shape[n])
            at += size[n]
            scale = quantize(z[n], to, round_model) if dtype[n] == torch.int8 else None
            if n in low:
                rank_out, rank_in = z[n].T.shape
                to.zero_()[:rank_out, :rank_in] = z[n].T
            elif scale is None:
                to.copy_(z[n])
            if round_model and scale is None:
                z[n].copy_(z[n].to(dtype[n]))
            addresses[n] = (to.data_ptr(), 0 if scale is None else self.keep(scale))
        return addresses

    def start(self, state: list[LayerState]) -> "Session":
        """A session that continues from `state`, which is copied."""
        return Session(self, state)

    def step(self, token, state: list[LayerState]):
        """Like RWKV7.step: token (B,) -> fp32 logits of the next (B, V), new state."""
        session = self.start(state)
        return session.next(token), session.state


class Session:
    """A state (one LayerState a layer, B rows) that tokens are fed to. Made by Decoder.start.

    `state` shows the state after the last token: views of one buffer, which the next token overwrites.
    """

    def __init__(self, decoder: Decoder, state: list[LayerState]):
        cfg, self.decoder = decoder.cfg, decoder
        C, N, B = cfg.n_embd, cfg.head_size, len(state[0].S) if state else 0
        shapes = [(B, C), (B, C // N, N, N), (B, C)]
        if [[tuple(t.shape) for t in layer] for layer in state] != [shapes] * cfg.n_layer or B == 0:
            raise UserError(
                f"the state does not fit: this model needs {cfg.n_layer} layers of (B, {C}), (B, {C // N}, {N}, {N}),"
                f" (B, {C})"
            )
        self.buffer = torch.empty(cfg.n_layer, B * C * (N + 2))
        self.state = []
        for row, layer in zip(self.buffer, state, strict=True):
            parts = row.split([B * C, B * C * N, B * C])
            self.state.append(LayerState(*(p.view(s) for p, s in zip(parts, shapes, strict=True))))
            for to, t in zip(self.state[-1], layer, strict=True):
                to.copy_(t.detach())

    def next(self, token) -> torch.Tensor:
        """token (B,) ids -> fp32 logits of the token after it (B, V)."""
        d, B, V = self.decoder, len(self.state[0].S), self.decoder.cfg.vocab_size
        ids = token.tolist()
        if token.shape != (B,) or token.is_floating_point() or not all(0 <= i < V for i in ids):
            raise UserError(f"expected {B} token ids from 0 to {V - 1}, got {ids}")
        logits = torch.empty(B, V)
        threads = min(torch.get_num_threads(), 1 + d.bytes // BYTES_A_THREAD)
        if d.library.dll.decode_token(
            threads, d.sizes, d.model, B, (ctypes.c_int64 * B)(*ids), self.buffer.data_ptr(), logits.data_ptr()
        ):
            raise MemoryError("no memory for a token's activations")
        return logits


class TorchDecoder:
    """RWKV7.step behind the interface of Decoder and Session."""

    def __init__(self, model: RWKV7, state=None):
        self.model, self.state = model, state

    def start(self, state) -> "TorchDecoder":
        return TorchDecoder(self.model, state)

    def next(self, token) -> torch.Tensor:
        logits, self.state = self.model.step(token, self.state)
        return logits


def decoder_for(model: RWKV7, dtype: str) -> Decoder | TorchDecoder:
    """The fastest there is for this model and machine. With "int8" the model's weights are rounded as well.

    Raises UserError for what only C++ can do, int8, where it can't.
    """
    try:
        return Decoder(model, dtype, round_model=dtype == "int8")
    except UserError:
        if dtype == "int8":
            raise
        return TorchDecoder(model)


def padded(n: int) -> int:
    return -(-n // LANES) * LANES


def quantize(w, to, round_w: bool) -> torch.Tensor:
    """Round w (n_out, n_in) to int8 in `to`, in the order of decode.cpp -> the scale of each row, fp32 (n_out,)."""
    scale = torch.empty(len(w))
    for i in range(0, len(w), 1024):  # few rows at a time: the temporaries stay small
        rows = w[i : i + 1024].float()
        s = (rows.abs().amax(1) / 127).clamp_min(1e-30)
        wanted = (rows / s[:, None]).unflatten(1, (-1, 4, WORDS))
        bytes, fraction = [], torch.zeros(())  # a weight is worth its byte and what stands below it in its word
        for part in wanted.unbind(2):
            bytes.append((part - fraction).round_())
            part.copy_(bytes[-1] + fraction)
            fraction = part.remainder(256) / 256
        if round_w:
            w[i : i + 1024] = wanted.flatten(1) * s[:, None]
        to[i : i + 1024] = torch.stack(bytes, dim=3).flatten(1)
        scale[i : i + 1024] = s
    return scale
