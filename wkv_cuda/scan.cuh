// What the scan over chunks (wkv7_chunked.cu) carries in registers, and how it fetches what each step needs.
#pragma once
#include "chunk.cuh"

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
