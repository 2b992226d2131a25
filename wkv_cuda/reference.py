"""The WKV7 recurrence in plain torch: the loop that defines it, and a chunked form that is fast enough without C++.

Both take operands r w k v a b (B, T, H, N) and s0 (B, H, N, N) [value, key], are differentiable by autograd in all
seven, and return y (B, T, H, N) in the operands' dtype and sT in fp32 (fp64 for fp64 operands).
"""

import torch
import torch.nn.functional as F

LOWEST = -5.0  # per-step log decay down to which the chunked form is exact: decays below exp(-5) are taken as exp(-5)


def wkv7_loop(r, w, k, v, a, b, s0):
    """The definition, step by step. Any dtype, any w."""
    dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    S, out = s0.to(dtype), []
    d = torch.exp(-torch.exp(w.to(dtype)))
    for t in range(r.shape[1]):
        r_t, d_t, k_t, v_t, a_t, b_t = (x[:, t].to(dtype) for x in (r, d, k, v, a, b))  # (B, H, N)
        sa = (S @ a_t[..., None]).squeeze(-1)  # what the state holds for key a
        S = S * d_t[..., None, :] + sa[..., :, None] * b_t[..., None, :] + v_t[..., :, None] * k_t[..., None, :]
        out.append((S @ r_t[..., None]).squeeze(-1))
    return (torch.stack(out, dim=1) if out else v.clone()).to(r.dtype), S


def wkv7_chunked(r, w, k, v, a, b, s0, C: int = 16):
    """The same in chunks of C steps: matrix products within all chunks at once, then a short loop over chunks.

    Let G_t be the log decay accumulated in a chunk up to and including step t, E_t up to but excluding it, S the state
    at the chunk's start. The sa_t = S_{t-1} a_t of a chunk solve a triangular system; with one row a step,

        sa = (I - ab)^-1 (ak v + (a e^E) S^T) ,   y = rk v + rb sa + (r e^G) S^T ,
        S' = S diag(e^G_C) + v^T (k e^{G_C - G}) + sa^T (b e^{G_C - G})

    where e.g. ak[t, s] = <a_t e^{E_t}, k_s e^{-G_s}> for s < t. Exponents are taken relative to the chunk's middle,
    so that neither factor overflows; exact for w <= log(5). Source of the form: the WY representation of DeltaNet
    (arXiv 2406.06484), with decay.
    """
    B, T, H, N = r.shape
    dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    n = -(-T // C)
    if n == 0:
        return v.clone(), s0.to(dtype)

    def chunks(x, fill=0.0):  # (B, T, H, N) -> (B, H, n, C, N), padded with identity steps
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, n * C - T), value=fill) if n * C > T else x.to(dtype)
        return x.reshape(B, n, C, H, N).permute(0, 3, 1, 2, 4)

    r_, k_, v_, a_, b_ = (chunks(x) for x in (r, k, v, a, b))
    g = (-torch.exp(chunks(w, -torch.inf))).clamp(min=LOWEST)
    G = g.cumsum(-2)
    E = G - g
    middle, end = G[..., C // 2 - 1 : C // 2, :], G[..., -1:, :]

    upto = torch.ones(C, C, dtype=dtype, device=r.device).tril()
    before = upto.tril(-1)
    a_mid, r_mid = a_ * (E - middle).exp(), r_ * (G - middle).exp()
    k_mid, b_mid = k_ * (middle - G).exp(), b_ * (middle - G).exp()
    ak, ab, rk, rb = (
        (a_mid @ k_mid.mT) * before,
        (a_mid @ b_mid.mT) * before,
        (r_mid @ k_mid.mT) * upto,
        (r_mid @ b_mid.mT) * upto,
    )

    # (I - ab)^-1 = (I + ab)(I + ab^2)(I + ab^4)..., exact because ab is strictly triangular
    inverse, power, done = torch.eye(C, dtype=dtype, device=r.device) + ab, ab, 2
    while done < C:
        power = power @ power
        inverse, done = inverse + inverse @ power, 2 * done
    sa_v, sa_S = inverse @ (ak @ v_), inverse @ (a_ * E.exp())  # sa = sa_v + sa_S S^T
    y_v, y_S = rk @ v_ + rb @ sa_v, r_ * G.exp() + rb @ sa_S  # y = y_v + y_S S^T

    k_end, b_end = k_ * (end - G).exp(), b_ * (end - G).exp()
    add = (v_.mT @ k_end + sa_v.mT @ b_end).flatten(0, 1)  # S' = S carry + add; (B H, n, N, N)
    carry = (torch.diag_embed(end.squeeze(-2).exp()) + sa_S.mT @ b_end).flatten(0, 1)
    S, starts = s0.to(dtype).flatten(0, 1), []
    for add_i, carry_i in zip(add.unbind(1), carry.unbind(1), strict=True):
        starts.append(S)
        S = torch.baddbmm(add_i, S, carry_i)
    y = y_v + y_S @ torch.stack(starts, dim=1).view(B, H, n, N, N).mT
    return y.permute(0, 2, 3, 1, 4).reshape(B, n * C, H, N)[:, :T].to(r.dtype), S.view(B, H, N, N)
