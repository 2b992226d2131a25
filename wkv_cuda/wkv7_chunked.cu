// WKV7 in chunks of 32 steps on tensor cores: bf16 operands, fp32 accumulation, fp32 states; forward and backward.
//
// Compile with -DN=32 or 64 (the head size) for sm_80 or later. Operands r w k v a b (B, T, H, N) contiguous, bf16;
// states S (B, H, N, N) [value, key], fp32; chunked.py holds the sequence of launches and the workspace.
//
// The algebra of one chunk. G_t is the log decay accumulated in the chunk up to and including step t, E_t up to but
// excluding it, M that up to the chunk's middle, all per key. With everything seen from the middle,
//     a = a e^(E-M) ,  r = r e^(G-M) ,  k = k e^(M-G) ,  b = b e^(M-G) ,
//     ab = a b^T , ak = a k^T  strictly below the diagonal,   rb = r b^T , rk = r k^T  on and below it,
// where S is the state at the start of the chunk times e^M and S' that at its end over e^(end-M), one row a step:
//     sa = (I - ab)^-1 (ak v + a S^T) ,   y = rk v + rb sa + r S^T ,   S' = S + v^T k + sa^T b .
// Put sa = U + W S^T and everything is affine in S, so that a chunk is S' = S (I + W^T b) + (v^T k + U^T b):
//     prepare   all chunks at once: the transition W^T b, the addition v^T k + U^T b, y0 = rk v + rb U, Q = r + rb W
//     scan      Z <- Z diag(e^end) + Z transition + addition, the only thing that is sequential; keeps every Z
//     outputs   all chunks at once: y = y0 + Q S^T
// Backward, with Z = dL/dS' (from the middle: times e^(end-M)), is the same scan from the end, transposed:
//     l = (I - ab)^-T (rb^T dy + b Z^T)  is dL/d(ak v + a S^T),   dS = Z (I + b^T W) + dy^T Q ,
//     dv = rk^T dy + ak^T l + k Z^T ,   dab = l sa^T , dak = l v^T , drb = dy sa^T , drk = dy v^T  (masked alike),
//     dr = drk k + drb b + dy S ,        da = dak k + dab b + l S ,
//     dk = drk^T r + dak^T a + v Z ,     db = drb^T r + dab^T a + sa Z ,
//     d log decay_u = sum_{t >= u} (r dr - k dk - b db)_t + sum_{t > u} (a da)_t + sum_v (Z S')_v .
// Source: the WY representation of the delta rule (arXiv 2406.06484) with decay, as in reference.py.

#include "chunk.cuh"
#include "scan.cuh"

// ---- forward: all chunks

// In shared memory, the same for both directions.
struct Chunk {
    Decays d;
    float diagonal[2 * BLOCK];
    Tile a, r, bk[2], sv[2];  // bk: b and k. sv: U or sa, and v
    Square m[4];              // ab, then its inverse; ak; rb; rk
};

// Load the operands, make them as seen from the middle, and m[].
DEVICE void load_chunk(Chunk& s, In r, In w, In k, In v, In a, In b, const Where& at) {
    u16(*in_w)[N] = (u16(*)[N])s.m;  // until the squares are there
    copy(in_w[0], N, w, at), copy(s.r[0], LN, r, at), copy(s.bk[1][0], LN, k, at);
    copy(s.sv[1][0], LN, v, at), copy(s.a[0], LN, a, at), copy(s.bk[0][0], LN, b, at);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    sum_decays(s.d, in_w, at.live);
    const Part<2> in_r = take(s.r, at), in_k = take(s.bk[1], at), in_v = take(s.sv[1], at);
    const Part<2> in_a = take(s.a, at), in_b = take(s.bk[0], at);
    __syncthreads();
    float up[4][4];
    load_up(up, s.d, 0);
    put(s.a, in_a, up);
    load_up(up, s.d, 1);
    put(s.r, in_r, up);
    each([&](int n, int i) { up[n][i] = reciprocal(up[n][i]); });
    put(s.bk[0], in_b, up);
    put(s.bk[1], in_k, up);
    put(s.sv[1], in_v);
    __syncthreads();
    scores<2>(s.m, s.diagonal, s.a, s.r, s.bk);
    __syncthreads();
}

// For the scan of dS and of S alike.
DEVICE void write_decay(float* decay, const Decays& d) {
    if (threadIdx.x < N) decay[(i64)blockIdx.x * N + threadIdx.x] = d.start[threadIdx.x] * d.up[C][threadIdx.x];
}

// Per chunk: y = y0, Q (C, N), transition and addition (N, N), decay (N) = e^end.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    prepare(In r, In w, In k, In v, In a, In b, Out y, Out Q, Out transition, Out addition, float* __restrict__ decay,
            i64 T, i64 H) {
    DYNAMIC_SHARED(Chunk, s);
    const Where at = where(T, H);
    const i64 block = blockIdx.x;
    load_chunk(*s, r, w, k, v, a, b, at);
    if (warp() == 0) invert(s->m[0], s->diagonal);
    float x[4][4] = {};
    apply<false>(x, s->m[1], s->sv[1]);
    store(s->sv[0], x);
    __syncthreads();
    float u[4][4] = {}, W[4][4] = {};
    apply<false>(u, s->m[0], s->sv[0]);
    apply<false>(W, s->m[0], s->a);
    __syncthreads();
    store(s->sv[0], u);
    store(s->a, W);  // a is not needed any more
    __syncthreads();

    float y0[4][4] = {}, q[4][4], add[N / 8][4] = {};
    apply<false>(y0, s->m[3], s->sv[1]);
    apply<false>(y0, s->m[2], s->sv[0]);
    write(y + at.first, at.stride, at.live, y0);
    load(q, s->r);
    apply<false>(q, s->m[2], s->a);
    scale_columns(q, s->d.start + my_columns());
    write(Q + block * C * N, N, C, q);
    write_transition(transition + block * N * N, s->bk[0], s->a, s->d.up[C], s->d.start);
    add_outer(add, s->sv[1], s->bk[1]);
    add_outer(add, s->sv[0], s->bk[0]);
    scale_columns(add, s->d.up[C]);
    write_state(addition + block * N * N, add);
    write_decay(decay, s->d);
}

struct Outputs {
    Tile q;
    State S;
};

// y += Q S^T. The rows of S, values, are put into the order of channels; its columns need none, nor those of Q.
extern "C" __global__ void __launch_bounds__(THREADS)
    outputs(In Q, In states, Out y, i64 T, i64 H) {
    DYNAMIC_SHARED(Outputs, s);
    const Where at = where(T, H);
    const i64 block = blockIdx.x;
    for (int i = threadIdx.x; i < C * N / 8; i += THREADS)
        copy_async(&s->q[i / (N / 8)][i % (N / 8) * 8], Q + block * C * N + i * 8);
    for (int i = threadIdx.x; i < N * N / 8; i += THREADS)
        copy_async(&s->S[place(i / (N / 8))][i % (N / 8) * 8], states + block * N * N + i * 8);
    copy_commit();
    float c[4][4];
    for (int i = 0; i < 4; i += 2) {
        const int t = my_rows() + row(i);
        uint4 y0 = make_uint4(0, 0, 0, 0);
        if (t < at.live) y0 = *(const uint4*)(y + at.first + t * at.stride + my_columns() + channel());
        eight(c, i, y0);
    }
    copy_wait<0>();
    __syncthreads();
    apply_state<true>(c, s->q, s->S);
    write(y + at.first, at.stride, at.live, c);
}

// ---- the scan over chunks, for both directions

// Z <- Z diag(decay) + Z transition + addition over the chunks of a segment of time.
// Grid: B H x segments x blocks of SCAN_ROWS, the last fastest. Z starts with `start` (B, H, N, N; null = 0), ends in
// `end`, and what it was before a chunk takes the place of the chunk's addition. `backward`: from the last chunk on.
// A segment starts with the maps Z <- Z P + A of those before it. They come from a launch with `mapping`, over 2 N
// rows: A, from zero; then P, from the identity and without additions, stored transposed -> maps (B H, segments, 2).
extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
    scan(In transition, u16* addition, const float* __restrict__ decay, const float* __restrict__ start,
         float* __restrict__ maps, float* __restrict__ end, i64 chunks_, i64 H_, i64 segments_, i64 backward,
         i64 mapping) {
    DYNAMIC_SHARED(u16, shared);
    const int chunks = chunks_, H = H_, segments = segments_, blocks = (mapping ? 2 * N : N) / SCAN_ROWS;
    const int head = blockIdx.x / blocks / segments, segment = blockIdx.x / blocks % segments;  // head = b H + h
    const int block_row = blockIdx.x % blocks * SCAN_ROWS, first = backward ? chunks - 1 : 0;
    const int length = (chunks + segments - 1) / segments, from = segment * length, upto = min(from + length, chunks);
    const Segment at = {block_row % N, block_row >= N, from, upto, ((i64)(head / H) * chunks + first) * H + head % H,
                        backward ? -H : H};
    const int warp_row = at.row + 16 * warp();
    if (mapping && upto == chunks) return;  // nothing comes after it

    for (int stage = 0; stage < STAGES && at.identity; stage++)  // additions of zero
        for (int p = threadIdx.x; p < SCAN_ROWS * N / 8; p += SCAN_THREADS)
            *(uint4*)(shared + stage * STAGE + N * N + p * 8) = make_uint4(0, 0, 0, 0);
    for (int i = 0; i < STAGES - 1; i++) fetch_stage(shared, at, from + i, transition, addition, decay);

    Carried Z = {};
    if (at.identity)
        for (int i = 0; i < N / 2; i++) Z[i / 4][i % 4] = warp_row + row(i % 4) == key(i / 4) + i % 2;
    if (!mapping) {
        if (start) load_rows(Z, start + ((i64)head * N + warp_row) * N);
        const float* map = maps + (i64)head * segments * 2 * N * N;
        for (int i = 0; i < segment; i++, map += 2 * N * N) apply_map(Z, map + warp_row * N, map + N * N);
    }
    for (int i = from; i < upto; i++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        Rounded z;
        round(z, Z);
        step(Z, z, shared + i % STAGES * STAGE);
        if (!mapping) store_rows(addition + (at.chunk(i) * N + warp_row) * N, z);
        fetch_stage(shared, at, i + STAGES - 1, transition, addition, decay);  // all have left what was there
    }
    float* map = maps + ((i64)head * segments + segment) * 2 * N * N;
    if (!mapping && upto == chunks) store_rows(end + ((i64)head * N + warp_row) * N, Z);
    if (mapping && !at.identity) store_rows(map + warp_row * N, Z);
    for (int i = 0; i < N / 2 && at.identity; i++)
        map[(N + key(i / 4) + i % 2) * N + warp_row + row(i % 4)] = Z[i / 4][i % 4];
}

// ---- backward: all chunks

struct PrepareBackward {
    Decays d;
    float diagonal[2 * BLOCK];
    Tile a, r, b[1], dy;
    Square m[2];  // ab, then its inverse; rb
};

// What the scan of dS needs: transition and addition (N, N), decay (N).
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    prepare_backward(In r, In w, In a, In b, In dy, Out transition, Out addition, float* __restrict__ decay, i64 T,
                     i64 H) {
    DYNAMIC_SHARED(PrepareBackward, s);
    const Where at = where(T, H);
    const i64 block = blockIdx.x;
    u16(*in_w)[N] = (u16(*)[N])s->m;  // until the squares are there
    copy(in_w[0], N, w, at), copy(s->r[0], LN, r, at), copy(s->a[0], LN, a, at);
    copy(s->b[0][0], LN, b, at), copy(s->dy[0], LN, dy, at);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    sum_decays(s->d, in_w, at.live);
    const Part<2> in_r = take(s->r, at), in_a = take(s->a, at), in_b = take(s->b[0], at), in_dy = take(s->dy, at);
    __syncthreads();
    float up[4][4];
    load_up(up, s->d, 0);
    put(s->a, in_a, up);
    load_up(up, s->d, 1);
    put(s->r, in_r, up);
    each([&](int n, int i) { up[n][i] = reciprocal(up[n][i]); });
    put(s->b[0], in_b, up);
    put(s->dy, in_dy);
    __syncthreads();
    scores<1>(s->m, s->diagonal, s->a, s->r, s->b);
    __syncthreads();
    if (warp() == 0) invert(s->m[0], s->diagonal);
    __syncthreads();

    float W[4][4] = {}, q[4][4], add[N / 8][4] = {};
    apply<false>(W, s->m[0], s->a);
    __syncthreads();
    store(s->a, W);
    __syncthreads();
    load(q, s->r);
    apply<false>(q, s->m[1], s->a);
    store(s->r, q);
    __syncthreads();
    write_transition(transition + block * N * N, s->a, s->b[0], s->d.start, s->d.up[C]);
    add_outer(add, s->dy, s->r);
    scale_columns(add, s->d.start);
    write_state(addition + block * N * N, add);
    write_decay(decay, s->d);
}

struct Gradients {
    Chunk c;
    Tile dy, l;
    State S, Z;
};

// sum_v (Z S)_v, for a part of the values in each warp: to be added up.
DEVICE void sum_states(float (*sums)[N], const Part<N / 16>& S, const Part<N / 16>& Z, const float (&start)[4][4],
                       const float (&end)[4][4]) {
    float sum[4][2] = {};
    for (int i = 0; i < N / 16; i++) {
        float x[4][4], z[4][4];
        eight(x, 0, S.x[i]), eight(z, 0, Z.x[i]);
        for (int n = 0; n < 8; n++) sum[n / 2][n % 2] += x[n / 2][n % 2] * z[n / 2][n % 2];
    }
    for (int n = 0; n < 8; n++) {
        float& x = sum[n / 2][n % 2];
        for (int other = N / 8; other < 32; other *= 2) x += __shfl_xor_sync(~0u, x, other);
        if (lane() < N / 8) sums[warp()][my_channel() + n] = x * start[n / 2][n % 2] * end[n / 2][n % 2];
    }
}

// sum_t (k (v Z) + b (sa Z))_t over the warp's steps. vZ, saZ: its blocks.
DEVICE void sum_steps(float (*sums)[N], const float (&k)[4][4], const float (&vZ)[4][4], const float (&b)[4][4],
                      const float (&saZ)[4][4]) {
    for (int n = 0; n < 4; n++)
        for (int i = 0; i < 2; i++) {
            float sum = k[n][i] * vZ[n][i] + b[n][i] * saZ[n][i];
            sum += k[n][i + 2] * vZ[n][i + 2] + b[n][i + 2] * saZ[n][i + 2];
            for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
            if (lane() < 4) sums[my_rows() / 16][my_columns() + channel() + 2 * n + i] = sum;
        }
}

// dw of half a chunk of one channel: the log decay of step u counts for all of x = r dr - k dk - b db + a da from step
// u on but for (a da)_u, and for sum_v (Z S')_v = sum_v (Z S)_v + sum_t (k (v Z) + b (sa Z))_t = `sum`.
DEVICE void write_dw(const float (*x)[N], const float (*ada)[N], float sum, const u16* w, u16* dw, const Where& at) {
    const int n = threadIdx.x % N, late = threadIdx.x / N;
    u16 in[16];
    for (int i = 0; i < 16; i++) {
        const int t = 16 * late + i;
        in[i] = w[at.first + (t < at.live ? t : 0) * at.stride + n];
    }
    if (!late)
        for (int t = 16; t < C; t++) sum += x[t][n];
    for (int i = 15; i >= 0; i--) {
        const int t = 16 * late + i;
        sum += x[t][n];
        const float g = log_decay(in[i]), d = g == LOWEST ? 0 : (sum - ada[t][n]) * g;
        if (t < at.live) dw[at.first + t * at.stride + n] = to_bf16(d);
    }
}

// sa and l: right-hand sides, then their solutions in the same place.
DEVICE void solve(Gradients& s) {
    Chunk& c = s.c;
    if (warp() == 0) invert(c.m[0], c.diagonal);
    float x[4][4] = {}, z[4][4] = {};
    apply<false>(x, c.m[1], c.sv[1]);
    apply_state<true>(x, c.a, s.S);
    store(c.sv[0], x);
    apply<true>(z, c.m[2], s.dy);
    apply_state<true>(z, c.bk[0], s.Z);
    store(s.l, z);
    __syncthreads();
    float sa[4][4] = {}, l[4][4] = {};
    apply<false>(sa, c.m[0], c.sv[0]);
    apply<true>(l, c.m[0], s.l);
    __syncthreads();
    store(c.sv[0], sa);
    store(s.l, l);
    __syncthreads();
}

// Write dk and db; x = -k dk - b db; sums: see sum_steps.
DEVICE void gradients_of_writing(Gradients& s, float (&x)[4][4], float (*sums)[N], u16* dk, u16* db, const Where& at) {
    Chunk& c = s.c;
    float k[4][4], b[4][4], gk[4][4] = {}, gb[4][4] = {}, up[4][4];
    load(k, c.bk[1]);
    load(b, c.bk[0]);
    apply_state<false>(gk, c.sv[1], s.Z);
    apply_state<false>(gb, c.sv[0], s.Z);
    sum_steps(sums, k, gk, b, gb);
    apply<true>(gk, c.m[1], c.a);
    apply<true>(gk, c.m[3], c.r);
    apply<true>(gb, c.m[0], c.a);
    apply<true>(gb, c.m[2], c.r);
    load_my_up(up, c.d, 1);
    each([&](int n, int i) {
        x[n][i] = -k[n][i] * gk[n][i] - b[n][i] * gb[n][i];
        const float down = reciprocal(up[n][i]);
        gk[n][i] *= down, gb[n][i] *= down;
    });
    write(dk + at.first, at.stride, at.live, gk);
    write(db + at.first, at.stride, at.live, gb);
}

// Write the gradient of r, or of a; product = it times r, or a. left: dy or l; mb, mk: the gradients of products of
// `operand` with b and k.
DEVICE void gradient_of_reading(Gradients& s, float (&product)[4][4], const Tile& operand, const Tile& left,
                                const Square& mb, const Square& mk, int after, u16* to, const Where& at) {
    float g[4][4] = {}, up[4][4];
    apply_state<false>(g, left, s.S);
    apply<false>(g, mb, s.c.bk[0]);
    apply<false>(g, mk, s.c.bk[1]);
    load(product, operand);
    load_my_up(up, s.c.d, after);
    each([&](int n, int i) { product[n][i] *= g[n][i], g[n][i] *= up[n][i]; });
    write(to + at.first, at.stride, at.live, g);
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    gradients(In r, In w, In k, In v, In a, In b, In dy, In states, In dstates, Out dr, Out dw, Out dk, Out dv, Out da,
              Out db, i64 T, i64 H) {
    DYNAMIC_SHARED(Gradients, s);
    Chunk& c = s->c;
    const Where at = where(T, H);
    const i64 block = blockIdx.x;
    copy(s->dy[0], LN, dy, at), copy_state(s->S, states + block * N * N), copy_state(s->Z, dstates + block * N * N);
    load_chunk(c, r, w, k, v, a, b, at);  // waits for these copies too
    const Part<2> in_dy = take(s->dy, at);
    const Part<N / 16> in_S = take_state(s->S), in_Z = take_state(s->Z);
    __syncthreads();
    float start[4][4], end[4][4], (*sums)[N] = (float(*)[N])s->l;
    eight(start, 0, c.d.start + my_channel()), eight(end, 0, c.d.up[C] + my_channel());
    put_state(s->S, in_S, start);
    put_state(s->Z, in_Z, end);
    put(s->dy, in_dy);
    sum_states(sums, in_S, in_Z, start, end);
    __syncthreads();
    const int n = threadIdx.x % N;
    float from_end = 0;  // sum_v (Z S')_v of channel n
    for (int i = 0; i < WARPS; i++) from_end += sums[i][n];
    __syncthreads();
    solve(*s);

    float gv[4][4] = {}, x[4][4], product[4][4];
    apply<true>(gv, c.m[3], s->dy);
    apply<true>(gv, c.m[1], s->l);
    apply_state<true>(gv, c.bk[1], s->Z);
    write(dv + at.first, at.stride, at.live, gv);
    __syncthreads();
    scores<2>(c.m, nullptr, s->l, s->dy, c.sv);  // from here on m is dab, dak, drb, drk
    __syncthreads();
    // x is made of the operands as they were rounded for the products, so that what cancels in dw does so
    sums = (float(*)[N])c.diagonal;
    gradients_of_writing(*s, x, sums, dk, db, at);
    gradient_of_reading(*s, product, c.r, s->dy, c.m[2], c.m[3], 1, dr, at);
    each([&](int m, int i) { x[m][i] += product[m][i]; });
    gradient_of_reading(*s, product, c.a, s->l, c.m[0], c.m[1], 0, da, at);
    each([&](int m, int i) { x[m][i] += product[m][i]; });
    __syncthreads();  // all are done with the tiles
    float(*parts)[N] = (float(*)[N])c.a;
    for (int i = 0; i < 4; i += 2) {
        eight(&parts[my_rows() + row(i)][my_columns() + channel()], x, i);
        eight(&parts[C + my_rows() + row(i)][my_columns() + channel()], product, i);
    }
    __syncthreads();
    write_dw(parts, parts + C, from_end + sums[0][n] + sums[1][n], w, dw, at);
}
