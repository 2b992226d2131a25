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
    return (torch.stack(out, dim=1) if out else torch.empty_like(v)).to(r.dtype), S


def wkv7_chunked(r, w, k, v, a, b, s0, C: int = 16):
    """The same in chunks of C steps: matrix products within a chunk, a short loop over chunks. For w <= log(5).

    Within a chunk let G_t be the log decay accumulated up to and including step t, E_t up to but excluding it. Then
    sa_t = S a_t is the solution of a triangular system: with X^T stacked over steps and S the state at the chunk's start,
        sa = (I - ab)^-1 (ak v + (a e^E) S^T) ,   y = rk v + rb sa + (r e^G) S^T ,
        S' = S diag(e^G_C) + v^T (k e^{G_C - G}) + sa^T (b e^{G_C - G})
    where e.g. ak[t, s] = <a_t e^{E_t}, k_s e^{-G_s}> for s < t. Exponents are taken relative to the middle of the chunk,
    so that neither factor overflows. Source of the form: the WY representation of DeltaNet (arXiv 2406.06484), with decay.
    """
    B, T, H, N = r.shape
    dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    n = -(-T // C)

    def chunks(x, fill=0.0):  # (B, T, H, N) -> (B, H, n, C, N), padded with identity steps
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, n * C - T), value=fill)
        return x.view(B, n, C, H, N).permute(0, 3, 1, 2, 4)

    R, K, V, A, Bb = (chunks(x) for x in (r, k, v, a, b))
    g = (-torch.exp(chunks(w, -torch.inf))).clamp(min=LOWEST)
    G = g.cumsum(-2)
    E = G - g
    middle = G[..., C // 2 - 1 : C // 2, :]
    G_end = G[..., -1:, :]

    # all four C x C products of (a, r) with (k, b) at once; masked to the past
    left = torch.cat([A * (E - middle).exp(), R * (G - middle).exp()], dim=-2)
    to_middle = (middle - G).exp()
    right = torch.cat([K * to_middle, Bb * to_middle], dim=-2)
    past = torch.ones(C, C, dtype=torch.bool, device=r.device).tril()
    mask = torch.cat([past.tril(-1), past]).repeat(1, 2)
    products = (left @ right.mT).masked_fill(~mask, 0)
    (ak, ab), (rk, rb) = (x.split(C, dim=-1) for x in products.split(C, dim=-2))

    # (I - ab)^-1 = (I + ab)(I + ab^2)(I + ab^4)..., exact because ab is strictly triangular
    eye = torch.eye(C, dtype=dtype, device=r.device)
    inverse, power, done = eye + ab, ab, 2
    while done < C:
        power = power @ power
        inverse, done = inverse + inverse @ power, 2 * done
    sa_v, sa_S = (inverse @ torch.cat([ak @ V, A * E.exp()], dim=-1)).split(N, dim=-1)  # sa = sa_v + sa_S S^T
    y_v = rk @ V + rb @ sa_v  # y = y_v + y_S S^T
    y_S = R * G.exp() + rb @ sa_S

    rest = (G_end - G).exp()  # decay from each step to the end of its chunk
    add = torch.cat([V, sa_v], dim=-2).mT @ torch.cat([K * rest, Bb * rest], dim=-2)  # S' = S carry + add
    carry = torch.diag_embed(G_end.squeeze(-2).exp()) + sa_S.mT @ (Bb * rest)
    S, starts = s0.to(dtype), []
    for i in range(n):
        starts.append(S)
        S = S @ carry[:, :, i] + add[:, :, i]
    if n == 0:
        return torch.empty_like(v), S
    y = y_v + y_S @ torch.stack(starts, dim=2).mT
    return y.permute(0, 2, 3, 1, 4).reshape(B, n * C, H, N)[:, :T].to(r.dtype), S
