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
//
// Range: half a chunk is 16 steps, so e^(+-16 log decay) must fit: the log decay of a step is taken as >= LOWEST, and
// has no gradient below. RWKV-7's is >= -0.61. Everything else is as exact as bf16 operands of matrix products allow.
//
// Order of channels. An mma leaves each thread with 2 adjacent columns of every 8. In shared memory, channels therefore
// lie in another order, in which the thread's 8 columns of 32 are 8 adjacent channels: 16 bytes of a row in global
// memory. Bits 1-2 of the channel are swapped with bits 3-4 (place(), its own inverse). A product does not notice when
// both factors' contracted channels are in the same order. Steps stay in their order.

#include "device.cuh"
#define DEVICE __device__ __forceinline__

constexpr int C = 32, THREADS = 2 * N, WARPS = N / 16;
constexpr int LN = N + 8, LC = C + 8;  // length of rows in shared memory: 8 rows then start in different banks
constexpr float LOWEST = -2.5f, LOG2E = 1.44269504f;

typedef const u16* __restrict__ In;  // kernel arguments in bf16
typedef u16* __restrict__ Out;
typedef u16 Tile[C][LN];    // one row a step
typedef u16 State[N][LN];   // [value][key]
typedef u16 Square[C][LC];  // step by step

DEVICE int lane() { return threadIdx.x % 32; }
DEVICE int warp() { return threadIdx.x / 32; }
DEVICE int place(int n) { return (n & ~30) | (n >> 2 & 6) | (n << 2 & 24); }

// ---- one instruction where the compiler makes several; the second of each is for a host

#ifdef __CUDACC__
DEVICE float exp2_fast(float x) {  // to 2 ulp
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}
DEVICE float reciprocal(float x) {  // to 1 ulp
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}
DEVICE void store16(void* to_global, uint4 x) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to_global), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}
#else
inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal(float x) { return 1 / x; }
inline void store16(void* to_global, uint4 x) { *(uint4*)to_global = x; }
#endif

// ---- where a chunk lies: block number = (b * chunks + chunk) * H + h, so that neighbours in memory run together

struct Where {
    i64 first;   // of row 0 of the chunk
    int stride;  // from row to row
    int live;    // rows that exist: fewer than C in the last chunk
};

DEVICE Where where(int T, int H) {
    const int chunks = (T + C - 1) / C, block = blockIdx.x;
    const int b = block / (chunks * H), t = block / H % chunks * C, h = block % H;
    return {(((i64)b * T + t) * H + h) * N, H * N, T - t < C ? T - t : C};
}

// ---- matrix products of a warp

// c (16 x 8 TILES) += A (16 x K) B (K x 8 TILES), from shared memory. A lies there as [row][k], or [k][row] if AT;
// B as [k][column], or [column][k] if BT.
template <bool AT, bool BT, int K, int TILES>
DEVICE void multiply(float (&c)[TILES][4], const u16* A, int lda, const u16* B, int ldb) {
    const int x = lane() % 8 + lane() / 8 % 2 * 8, y = lane() / 16 * 8;  // of the 8 x 8 blocks in one order,
    const int u = lane() % 8 + lane() / 16 * 8, z = lane() / 8 % 2 * 8;  // and in the other
    A += AT ? u * lda + z : x * lda + y;
    B += BT ? u * ldb + z : x * ldb + y;
    for (int k = 0; k < K; k += 16) {
        u32 a[4], b[4];
        AT ? load_matrices_transposed(a, A + k * lda) : load_matrices(a, A + k);
        for (int n = 0; n < TILES; n += 2) {
            BT ? load_matrices(b, B + n * 8 * ldb + k) : load_matrices_transposed(b, B + k * ldb + n * 8);
            const u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
            mma16816(c[n], a, left);
            mma16816(c[n + 1], a, right);
        }
    }
}

// The place of an accumulator: c[n][i] is row row(i), column 8 n + column(i).
DEVICE int row(int i) { return lane() / 4 + i / 2 * 8; }
DEVICE int column(int i) { return lane() % 4 * 2 + i % 2; }
// Where the warp's block of a tile begins: it owns 16 steps and 32 channels.
DEVICE int my_rows() { return warp() % 2 * 16; }
DEVICE int my_columns() { return warp() / 2 * 32; }

// Round the warp's 16 x 8 TILES block to bf16 and store it at `to`.
template <int TILES>
DEVICE void store(u16* to, int ld, const float (&c)[TILES][4]) {
    for (int n = 0; n < TILES; n++)
        for (int i = 0; i < 4; i += 2)
            *(u32*)(to + row(i) * ld + 8 * n + column(i)) = pack_bf16(c[n][i], c[n][i + 1]);
}

// This thread's 8 adjacent channels in row row(i) of four tiles, beginning with channel 32 x + channel(): as bf16 ...
DEVICE int channel() { return lane() % 4 * 8; }
DEVICE uint4 eight(const float (*c)[4], int i) {
    return make_uint4(pack_bf16(c[0][i], c[0][i + 1]), pack_bf16(c[1][i], c[1][i + 1]),
                      pack_bf16(c[2][i], c[2][i + 1]), pack_bf16(c[3][i], c[3][i + 1]));
}
DEVICE void unpack(float* to, u32 pair) {
    to[0] = from_bf16(pair & 0xffff), to[1] = from_bf16(pair >> 16);
}
DEVICE void eight(float (*c)[4], int i, uint4 x) {
    unpack(&c[0][i], x.x), unpack(&c[1][i], x.y), unpack(&c[2][i], x.z), unpack(&c[3][i], x.w);
}
// ... and to and from fp32.
DEVICE void eight(float (*c)[4], int i, const float* from) {
    const float4 x = *(const float4*)from, y = *(const float4*)(from + 4);
    c[0][i] = x.x, c[0][i + 1] = x.y, c[1][i] = x.z, c[1][i + 1] = x.w;
    c[2][i] = y.x, c[2][i + 1] = y.y, c[3][i] = y.z, c[3][i + 1] = y.w;
}
DEVICE void eight(float* to, const float (*c)[4], int i) {
    *(float4*)to = make_float4(c[0][i], c[0][i + 1], c[1][i], c[1][i + 1]);
    *(float4*)(to + 4) = make_float4(c[2][i], c[2][i + 1], c[3][i], c[3][i + 1]);
}

// Multiply columns by factors that are given by channel; `factor` points to that of the tiles' first channel.
template <int TILES>
DEVICE void scale_columns(float (&c)[TILES][4], const float* factor) {
    for (int n = 0; n < TILES; n += 4) {
        float f[4][4];
        eight(f, 0, factor + n / 4 * 32 + channel());
        for (int i = 0; i < 16; i++) c[n + i / 4][i % 4] *= f[i / 4][i % 2];
    }
}

// Write the warp's 16 rows of an N x N matrix in bf16; its rows are the channels at places 16 warp() ...
DEVICE void write_state(u16* to, const float (&c)[N / 8][4]) {
    for (int n = 0; n < N / 8; n += 4)
        for (int i = 0; i < 4; i += 2)
            store16(to + place(16 * warp() + row(i)) * N + n / 4 * 32 + channel(), eight(c + n, i));
}

// ---- loading a chunk

// A thread's part of a tile or state: 8 channels of rows my_row(0), my_row(1) ... It is copied to shared memory as it
// lies in global memory, early and without waiting; taken from there by the same thread; and put back, scaled and in
// the order of channels above, when all threads have taken theirs.
template <int ROWS>
struct Part {
    uint4 x[ROWS];
};
DEVICE int my_row(int i) { return threadIdx.x / (N / 8) + 16 * i; }
DEVICE int my_channel() { return threadIdx.x % (N / 8) * 8; }

DEVICE void copy(u16* to, int ld, const u16* x, const Where& at) {
    for (int i = 0; i < 2; i++)
        copy_async(to + my_row(i) * ld + my_channel(),
                   x + at.first + (my_row(i) < at.live ? my_row(i) : 0) * at.stride + my_channel());
}
DEVICE void copy_state(State& to, const u16* from) {
    for (int i = 0; i < N / 16; i++) copy_async(&to[my_row(i)][my_channel()], from + my_row(i) * N + my_channel());
}
// Rows that don't exist are zero.
DEVICE Part<2> take(const Tile& from, const Where& at) {
    Part<2> part;
    for (int i = 0; i < 2; i++) {
        part.x[i] = *(const uint4*)&from[my_row(i)][my_channel()];
        if (my_row(i) >= at.live) part.x[i] = make_uint4(0, 0, 0, 0);
    }
    return part;
}
DEVICE Part<N / 16> take_state(const State& from) {
    Part<N / 16> part;
    for (int i = 0; i < N / 16; i++) part.x[i] = *(const uint4*)&from[my_row(i)][my_channel()];
    return part;
}

// Put 8 channels into a row in shared memory, in the order of channels above; times factors, in places [4][i].
DEVICE void put(u16* row, uint4 x) {
    const u32 pairs[4] = {x.x, x.y, x.z, x.w};
    for (int j = 0; j < 4; j++) *(u32*)(row + place(my_channel()) + 8 * j) = pairs[j];
}
DEVICE void put(u16* row, uint4 x, const float (&factor)[4][4], int i) {
    float c[4][4];
    eight(c, i, x);
    for (int j = 0; j < 4; j++) c[j][i] *= factor[j][i], c[j][i + 1] *= factor[j][i + 1];
    put(row, eight(c, i));
}
DEVICE void put(Tile& to, const Part<2>& part) {
    for (int i = 0; i < 2; i++) put(to[my_row(i)], part.x[i]);
}
DEVICE void put(Tile& to, const Part<2>& part, const float (&factors)[4][4]) {
    for (int i = 0; i < 2; i++) put(to[my_row(i)], part.x[i], factors, 2 * i);
}
DEVICE void put_state(State& to, const Part<N / 16>& part, const float (&factor)[4][4]) {
    for (int i = 0; i < N / 16; i++) put(to[place(my_row(i))], part.x[i], factor, 0);
}

// ---- decays

struct Decays {
    float up[C + 1][N];  // up[t] = e^(E_t-M), up[t + 1] = e^(G_t-M): what a and r are multiplied with, k and b divided
    float start[N];      // e^M: from the start to the middle. From there to the end it is up[C]
};

// Of a step, natural. A comparison that is false for NaN keeps it.
DEVICE float log_decay(u16 w) {
    const float g = -exp2_fast(LOG2E * from_bf16(w));
    return g < LOWEST ? LOWEST : g;
}

// Each thread sums half a chunk of one channel, from the middle outwards. Steps that don't exist don't decay.
DEVICE void sum_decays(Decays& d, const u16 (*w)[N], int live) {
    const int n = threadIdx.x % N, late = threadIdx.x / N, direction = late ? 1 : -1;
    float g[16], sum = 0;
    for (int i = 0; i < 16; i++) g[i] = log_decay(w[15 + late + direction * i][n]) * LOG2E;
    if (!late) d.up[16][n] = 1;
    for (int i = 0; i < 16; i++) {
        sum += 15 + late + direction * i < live ? direction * g[i] : 0;
        d.up[15 + 2 * late + direction * i][n] = exp2_fast(sum);
    }
    if (!late) d.start[n] = exp2_fast(-sum);
}

// up[] of a thread's part of a tile; of its block in the accumulators; `after` or before the steps.
DEVICE void load_up(float (&f)[4][4], const Decays& d, int after) {
    for (int i = 0; i < 2; i++) eight(f, 2 * i, d.up[my_row(i) + after] + my_channel());
}
DEVICE void load_my_up(float (&f)[4][4], const Decays& d, int after) {
    for (int i = 0; i < 4; i += 2) eight(f, i, d.up[my_rows() + row(i) + after] + my_columns() + channel());
}
template <class F>
DEVICE void each(F f) {
    for (int i = 0; i < 16; i++) f(i / 4, i % 4);
}

// ---- products of steps with steps

// KEYS = 2: ab, ak, rb, rk -> out[0..3], where `keys` are b and k; KEYS = 1: ab, rb. Also, in fp32, the two 16 x 16
// blocks of ab on the diagonal, transposed -> diagonal, for inverting.
constexpr int BLOCK = 16 * 17;  // floats of one such block: the two lie in different banks
template <int KEYS>
DEVICE void scores(Square* out, float* diagonal, const Tile& a, const Tile& r, const Tile* keys) {
    for (int job = warp(); job < 4 * KEYS; job += WARPS) {
        const int which = job / 2, half = job % 2;
        const bool strict = which < KEYS;
        float c[4][4] = {};
        multiply<false, true, N>(c, (strict ? a : r)[16 * half], LN, keys[which % KEYS][0], LN);
        for (int n = 0; n < 4; n++)
            for (int i = 0; i < 4; i++) {
                const int t = 16 * half + row(i), s = 8 * n + column(i);
                if (s > t - strict) c[n][i] = 0;
                if (diagonal && which == 0 && n / 2 == half) diagonal[half * BLOCK + s % 16 * 16 + t % 16] = c[n][i];
            }
        store(out[which][16 * half], LC, c);
    }
}

// (I - ab)^-1, by one warp, in place of ab: both 16 x 16 diagonal blocks by substitution in fp32, one column a lane;
// then the block below them, which is inverse_2 ab_21 inverse_1.
DEVICE void invert(Square& ab, const float* diagonal) {
    const int block = lane() / 16, j = lane() % 16;
    const float4* L = (const float4*)(diagonal + block * BLOCK);
    float x[16];
    for (int t = 0; t < 16; t++) x[t] = t == j;
#pragma unroll  // x must become registers: other loops are short enough for the compiler to see that by itself
    for (int s = 0; s < 15; s++)
#pragma unroll
        for (int t = s / 4 * 4; t < 16; t += 4) {
            float4 l = L[(s * 16 + t) / 4];
            if (t > s) x[t] += l.x * x[s];
            if (t + 1 > s) x[t + 1] += l.y * x[s];
            if (t + 2 > s) x[t + 2] += l.z * x[s];
            if (t + 3 > s) x[t + 3] += l.w * x[s];
        }
    for (int t = 0; t < 16; t++) ab[16 * block + t][16 * block + j] = to_bf16(x[t]);
    __syncwarp();
    float c[2][4] = {}, below[2][4] = {};
    multiply<false, false, 16>(c, &ab[16][16], LC, &ab[16][0], LC);
    __syncwarp();
    store(&ab[16][0], LC, c);
    __syncwarp();
    multiply<false, false, 16>(below, &ab[16][0], LC, &ab[0][0], LC);
    __syncwarp();
    store(&ab[16][0], LC, below);
}

// ---- pieces of the kernels below

// The warp's block of a tile, in fp32.
DEVICE void load(float (&c)[4][4], const Tile& tile) {
    for (int n = 0; n < 4; n++)
        for (int i = 0; i < 4; i += 2)
            unpack(&c[n][i], *(const u32*)&tile[my_rows() + row(i)][my_columns() + 8 * n + column(i)]);
}
DEVICE void store(Tile& tile, const float (&c)[4][4]) {
    store(&tile[my_rows()][my_columns()], LN, c);
}

// Write it to global memory, as far as the chunk goes.
DEVICE void write(u16* to, int stride, int live, const float (&c)[4][4]) {
    for (int i = 0; i < 4; i += 2)
        if (my_rows() + row(i) < live)
            store16(to + (my_rows() + row(i)) * stride + my_columns() + channel(), eight(c, i));
}

// c += (a square) (a tile), or with the square transposed.
template <bool AT>
DEVICE void apply(float (&c)[4][4], const Square& square, const Tile& tile) {
    multiply<AT, false, C>(c, AT ? &square[0][my_rows()] : square[my_rows()], LC, &tile[0][my_columns()], LN);
}
// c += (a tile) (a state), or with the state transposed.
template <bool BT>
DEVICE void apply_state(float (&c)[4][4], const Tile& tile, const State& state) {
    multiply<false, BT, N>(c, tile[my_rows()], LN, BT ? state[my_columns()] : &state[0][my_columns()], LN);
}
// c = x^T y, N x N: the warp's 16 rows.
DEVICE void add_outer(float (&c)[N / 8][4], const Tile& x, const Tile& y) {
    multiply<true, false, C>(c, &x[0][16 * warp()], LN, y[0], LN);
}

// transition = x^T y as the scan wants it: [to][from] of the row vectors Z that it multiplies.
DEVICE void write_transition(u16* to, const Tile& x, const Tile& y, const float* row_factor,
                             const float* column_factor) {
    float c[N / 8][4] = {};
    add_outer(c, x, y);
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) c[n][i] *= row_factor[place(16 * warp() + row(i))];
    scale_columns(c, column_factor);
    write_state(to, c);
}

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

constexpr int SCAN_THREADS = 64, SCAN_ROWS = 32;  // two warps: more share what is read, fewer occupy more of the card
constexpr int STAGES = 4;                             // chunks in shared memory: one in use, the others under way
constexpr int STAGE = N * N + SCAN_ROWS * N + 2 * N;  // u16 in one: transition, additions for the block's rows, decay
// 16-byte pieces of odd rows change place by as many: the two rows that 8 lanes read lie in different banks.
constexpr int SWIZZLE = N >= 64 ? 4 : 0;

// What a warp carries: 16 rows of Z; [n][i] is row row(i), key key(n) + i % 2. So these accumulators are, rounded, the
// factor A of the next product, and a thread's part of the factor B, stored as [to][from], is 8 adjacent elements of a
// row. No warp needs anything of another.
typedef float Carried[N / 8][4];
typedef u32 Rounded[N / 16][4];
DEVICE int key(int n) { return n / 4 * 32 + channel() + n % 4 * 2; }

DEVICE void round(Rounded& to, const Carried& Z) {
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i += 2) to[n / 2][n % 2 * 2 + i / 2] = pack_bf16(Z[n][i], Z[n][i + 1]);
}
// fp32, from and to [row][key]; `rows` points to the warp's first.
DEVICE void load_rows(Carried& Z, const float* rows) {
    for (int n = 0; n < N / 8; n += 4)
        for (int i = 0; i < 4; i += 2) eight(Z + n, i, rows + row(i) * N + n * 8 + channel());
}
DEVICE void store_rows(float* rows, const Carried& Z) {
    for (int n = 0; n < N / 8; n += 4)
        for (int i = 0; i < 4; i += 2) eight(rows + row(i) * N + n * 8 + channel(), Z + n, i);
}
DEVICE void store_rows(u16* rows, const Rounded& z) {
    for (int m = 0; m < N / 16; m += 2)
        for (int j = 0; j < 2; j++)
            store16(rows + row(2 * j) * N + m * 16 + channel(),
                    make_uint4(z[m][j], z[m][j + 2], z[m + 1][j], z[m + 1][j + 2]));
}

// Z <- Z P + A with fp32 P [to][from] and A. Products of high and low halves: a long past costs no accuracy.
DEVICE void apply_map(Carried& Z, const float* A, const float* P) {
    Rounded high, low;
    round(high, Z);
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i += 2) {
            float x[2];
            unpack(x, high[n / 2][n % 2 * 2 + i / 2]);
            low[n / 2][n % 2 * 2 + i / 2] = pack_bf16(Z[n][i] - x[0], Z[n][i + 1] - x[1]);
        }
    load_rows(Z, A);
    for (int n = 0; n < N / 8; n++) {
        const float* p = P + place(8 * n + lane() / 4) * N + channel();
        for (int m = 0; m < N / 16; m++) {
            const float4 x = *(const float4*)(p + m / 2 * 32 + m % 2 * 4);
            const u32 B[2] = {pack_bf16(x.x, x.y), pack_bf16(x.z, x.w)};
            float b[4];
            unpack(b, B[0]), unpack(b + 2, B[1]);
            const u32 rest[2] = {pack_bf16(x.x - b[0], x.y - b[1]), pack_bf16(x.z - b[2], x.w - b[3])};
            mma16816(Z[n], high[m], B);
            mma16816(Z[n], low[m], B);
            mma16816(Z[n], high[m], rest);
        }
    }
}

// Where a block of the scan works.
struct Segment {
    int row;          // first of the block, in a state
    bool identity;    // it carries rows of the identity, without additions
    int from, upto;   // chunks, in the order of the scan
    i64 first, step;  // the number of chunk i is first + i step

    DEVICE i64 chunk(int i) const { return first + i * step; }
};

// Start copying a chunk into its stage.
DEVICE void fetch_stage(u16* shared, const Segment& at, int i, const u16* transition, const u16* addition,
                        const float* decay) {
    const int piece = threadIdx.x, swapped = piece ^ (piece / (N / 8) & 1) * SWIZZLE;
    u16* to = shared + i % STAGES * STAGE + swapped * 8;
    if (i < at.upto) {
        const i64 chunk = at.chunk(i);
        const u16* from = transition + chunk * N * N + piece * 8;
        const u16* rows = addition + (chunk * N + at.row) * N + piece * 8;
        for (int p = 0; p < N * N; p += SCAN_THREADS * 8) copy_async(to + p, from + p);
        for (int p = 0; p < SCAN_ROWS * N; p += SCAN_THREADS * 8)
            if (!at.identity) copy_async(to + N * N + p, rows + p);
        to += (piece - swapped) * 8;
        if (piece < N / 4) copy_async(to + N * N + SCAN_ROWS * N, decay + chunk * N + piece * 4);
    }
    copy_commit();
}

// Z <- Z diag(decay) + z transition + addition, with z = Z rounded.
DEVICE void step(Carried& Z, const Rounded& z, const u16* stage) {
    // where 8 channels of this thread begin in a row, by parity of n / 4; its row of the transition; of the additions
    const int odd = N >= 64 ? lane() / 4 % 2 * 32 : 0, part[2] = {channel() + odd, channel() + 32 - odd};
    const int to = place(lane() / 4) * N, mine = N * N + (16 * warp() + lane() / 4) * N;
    const float* d = (const float*)(stage + N * N + SCAN_ROWS * N);
    for (int n = 0; n < N / 8; n += 4) {
        float f[4][4], x[4][4];
        eight(f, 0, d + n * 8 + channel());
        for (int i = 0; i < 4; i += 2)  // rows lane() / 4 and 8 further
            eight(x, i, *(const uint4*)(stage + mine + part[n / 4 % 2] + n / 8 * 64 + i * 4 * N));
        for (int e = 0; e < 16; e++) Z[n + e / 4][e % 4] = Z[n + e / 4][e % 4] * f[e / 4][e % 2] + x[e / 4][e % 4];
    }
    for (int n = 0; n < N / 8; n++)
        for (int m = 0; m < N / 16; m += 2) {
            const uint4 B = *(const uint4*)(stage + to + part[m / 2 % 2] + m / 4 * 64 + place(8 * n) * N);
            const u32 left[2] = {B.x, B.y}, right[2] = {B.z, B.w};
            mma16816(Z[n], z[m], left);
            mma16816(Z[n], z[m + 1], right);
        }
}

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
