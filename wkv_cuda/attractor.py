"""A recurrence whose state decays towards a matrix A instead of towards zero, by the operator as it is.

    S_t = A + (S_{t-1} - A) diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T ,   y_t = S_t r_t

With S' = S - A this is the ordinary recurrence with a second thing to write, (A a_t) b_t^T, so every step becomes two:
the token's own, and one that only writes. Twice the time of the operator, on every backend, with all gradients.
Source: the published `python` kernel adds A (.) (1 - d_t) after every step, which is the same.
"""

from typing import NamedTuple

import torch

from wkv_cuda import wkv7


class Attracted(NamedTuple):
    """A start state and what the state decays towards, both (B, H, N, N) fp32 [value, key]."""

    S: torch.Tensor
    A: torch.Tensor


def wkv7_from(r, w, k, v, a, b, start):
    """wkv7 from a start state, or from `Attracted`: y (B, T, H, N), the state after step T (B, H, N, N)."""
    if not isinstance(start, Attracted):
        return wkv7(r, w, k, v, a, b, start)
    pair = lambda x, y: torch.stack([x, y], dim=2).flatten(1, 2)  # (B, T, H, N) twice -> (B, 2 T, H, N)
    matrix, zero = start.A.to(r.dtype), torch.zeros_like(r)
    of = lambda x: torch.einsum("bhij,bthj->bthi", matrix, x)  # A x_t
    y, S = wkv7(pair(zero, r), pair(w, torch.full_like(w, -torch.inf)), pair(k, b), pair(v, of(a)), pair(a, zero),
                pair(b, zero), start.S - start.A)  # fmt: skip
    return y.unflatten(1, (r.shape[1], 2))[:, :, 1] + of(r), S + start.A
