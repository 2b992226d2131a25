// The pieces that the kernels of wkv7_chunked.cu are made of: tiles of a chunk in shared memory, products of a warp,
// loading, decays, products of steps with steps.
//
// Range: half a chunk is 16 steps, so e^(+-16 log decay) must fit: the log decay of a step is taken as >= LOWEST, and
// has no gradient below. RWKV-7's is >= -0.61. Everything else is as exact as bf16 operands of matrix products allow.
//
// Order of channels. An mma leaves each thread with 2 adjacent columns of every 8. In shared memory, channels therefore
// lie in another order, in which the thread's 8 columns of 32 are 8 adjacent channels: 16 bytes of a row in global
// memory. Bits 1-2 of the channel are swapped with bits 3-4 (place(), its own inverse). A product does not notice when
// both factors' contracted channels are in the same order. Steps stay in their order.

#pragma once
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

// ---- a chunk's pieces

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
