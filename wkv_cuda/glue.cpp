// What RWKV-7 computes between its matrix products and the recurrence, forward and backward: one pass over memory for
// each piece, where a chain of tensor operators makes five to twenty. The formulas are the functions of the same names
// in model.py.
//
// Activations are rows of C = H*N elements, fp32 (dtype 0) or bf16 (dtype 1); parameters are fp32. Arithmetic is fp32.
// A task is a block of ROWS rows. The gradients of parameters are sums over all rows: each block adds up its own, and
// the caller adds the blocks in order, so that results do not depend on the number of threads.

#include <cmath>

#include "cpu.h"

constexpr int ROWS = 32;    // of a task; glue.py knows it too
constexpr int STRIP = 128;  // channels worked on at a time in the pieces without heads

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_row(-x)); }

// log(sigmoid(z)) = min(z, 0) - log1p(e) with e = exp(-|z|), and log1p(e) = 2 atanh(e / (2 + e)) as a series: at
// most 1/3 to the 17th power is left out.
static inline float log_sigmoid(float z) {
    float e = exp_row(z < 0 ? z : -z), s = e / (2.0f + e), q = s * s;
    float p = 1.0f / 15;
    for (int i = 13; i > 0; i -= 2) p = p * q + 1.0f / i;
    return (z < 0 ? z : 0.0f) - 2.0f * s * p;
}

// <x, y>, or the sum of x without y. Compilers don't split a sum of floats over lanes by themselves.
static inline float dot(int n, const float* x, const float* y = nullptr) {
    vf sum = set1(0);
    int i = 0;
    for (; i + W <= n; i += W) sum += y ? load(x + i) * load(y + i) : load(x + i);
    float lanes[W], total = 0;
    store(lanes, sum);
    for (; i < n; i++) total += y ? x[i] * y[i] : x[i];
    for (int j = 0; j < W; j++) total += lanes[j];
    return total;
}

static inline void add_to(float* sum, int n, const float* x) {
    for (int i = 0; i < n; i++) sum[i] += x[i];
}

namespace {
struct Nothing {};
}  // namespace

// f(worker, block, first row, end) for all blocks of rows.
template <class Worker, class F>
static int for_each_block(std::int64_t rows, int threads, F f) {
    return !for_each_task<Worker>((rows + ROWS - 1) / ROWS, threads, [&](Worker& worker, std::int64_t block) {
        f(worker, block, block * ROWS, std::min<std::int64_t>(rows, (block + 1) * ROWS));
    });
}

// ---- mix: out_i = x + (the token before - x) * coefs_i, i < n

EXPORT int mix_forward(int threads, int dtype, std::int64_t B, std::int64_t T, std::int64_t C, std::int64_t n,
                       const void* x, const void* x_prev, const float* coefs, void* const* out) {
    return for_each_block<Nothing>(B * T, threads, [&](Nothing&, std::int64_t, std::int64_t row, std::int64_t end) {
        float now[STRIP], dx[STRIP], y[STRIP];
        for (; row < end; row++)
            for (std::int64_t c = 0; c < C; c += STRIP) {
                const int m = (int)std::min<std::int64_t>(STRIP, C - c);
                read_row(dtype, x, row * C + c, m, now);
                if (row % T) read_row(dtype, x, (row - 1) * C + c, m, dx);
                else read_row(dtype, x_prev, row / T * C + c, m, dx);
                for (int j = 0; j < m; j++) dx[j] -= now[j];
                for (int i = 0; i < n; i++) {
                    for (int j = 0; j < m; j++) y[j] = now[j] + dx[j] * coefs[i * C + c + j];
                    write_row(dtype, out[i], row * C + c, m, y);
                }
            }
    });
}

// A token gets gradient from its own outputs and, as the token before, from the next one's. dcoefs: (blocks, n, C).
EXPORT int mix_backward(int threads, int dtype, std::int64_t B, std::int64_t T, std::int64_t C, std::int64_t n,
                        const void* x, const void* x_prev, const float* coefs, const void* const* dout, void* dx,
                        void* dx_prev, float* dcoefs) {
    return for_each_block<Nothing>(B * T, threads, [&](Nothing&, std::int64_t block, std::int64_t row0,
                                                       std::int64_t end) {
        float now[STRIP], before[STRIP], g[STRIP], sum[STRIP], to_before[STRIP];
        std::memset(dcoefs + block * n * C, 0, n * C * sizeof(float));
        for (std::int64_t row = row0; row < end; row++)
            for (std::int64_t c = 0; c < C; c += STRIP) {
                const int m = (int)std::min<std::int64_t>(STRIP, C - c);
                const bool first = row % T == 0, last = row % T == T - 1;
                read_row(dtype, x, row * C + c, m, now);
                if (first) read_row(dtype, x_prev, row / T * C + c, m, before);
                else read_row(dtype, x, (row - 1) * C + c, m, before);
                for (int j = 0; j < m; j++) sum[j] = to_before[j] = 0;
                for (int i = 0; i < n; i++) {
                    const float* coef = coefs + i * C + c;
                    float* dcoef = dcoefs + (block * n + i) * C + c;
                    read_row(dtype, dout[i], row * C + c, m, g);
                    for (int j = 0; j < m; j++) {
                        sum[j] += g[j] * (1 - coef[j]);
                        to_before[j] += g[j] * coef[j];
                        dcoef[j] += g[j] * (before[j] - now[j]);
                    }
                    if (last) continue;
                    read_row(dtype, dout[i], (row + 1) * C + c, m, g);
                    for (int j = 0; j < m; j++) sum[j] += g[j] * coef[j];
                }
                write_row(dtype, dx, row * C + c, m, sum);
                if (first) write_row(dtype, dx_prev, row / T * C + c, m, to_before);
            }
    });
}

// ---- operands: w k v a b of the recurrence

enum { W0, A0, V0, KK, KA, N_VECTORS };            // the parameters w0 a0 v0 k_k k_a, of C elements each
enum { K, V, W_LOW, A_LOW, V_LOW, V_FIRST, N_IN };  // activations; layer 0 has no V_LOW and no V_FIRST (null)
constexpr int MAX_N = 256;

namespace {
// One head of one token.
struct Head {
    float k[MAX_N], v[MAX_N], w[MAX_N], a[MAX_N], mix[MAX_N], v_first[MAX_N], kk[MAX_N];
    float norm;  // of k * k_k

    void read(int dtype, const void* const* in, const float* const* vec, std::int64_t at, std::int64_t c, int N) {
        read_row(dtype, in[K], at, N, k);
        read_row(dtype, in[V], at, N, v);
        read_row(dtype, in[W_LOW], at, N, w);
        read_row(dtype, in[A_LOW], at, N, a);
        for (int j = 0; j < N; j++) w[j] += vec[W0][c + j];
        for (int j = 0; j < N; j++) a[j] = sigmoid(a[j] + vec[A0][c + j]);
        if (in[V_LOW]) {
            read_row(dtype, in[V_LOW], at, N, mix);
            read_row(dtype, in[V_FIRST], at, N, v_first);
            for (int j = 0; j < N; j++) mix[j] = sigmoid(mix[j] + vec[V0][c + j]);
        }
        for (int j = 0; j < N; j++) kk[j] = k[j] * vec[KK][c + j];
        norm = std::max(std::sqrt(dot(N, kk, kk)), 1e-12f);
        for (int j = 0; j < N; j++) kk[j] /= norm;
    }
};
}  // namespace

// pad: a byte a row, or null; a row of padding becomes an identity step. out: w k v a b.
EXPORT int operands_forward(int threads, int dtype, std::int64_t rows, std::int64_t H, std::int64_t N,
                            const void* const* in, const float* const* vec, const unsigned char* pad,
                            void* const* out) {
    if (N > MAX_N) return 2;  // 1 is: no memory
    const int n = (int)N;
    return for_each_block<Head>(rows, threads, [&](Head& x, std::int64_t, std::int64_t row, std::int64_t end) {
        float w[MAX_N], k[MAX_N], v[MAX_N], a[MAX_N], b[MAX_N];
        float* results[] = {w, k, v, a, b};
        for (; row < end; row++)
            for (std::int64_t c = 0; c < H * N; c += N) {
                const std::int64_t at = row * H * N + c;
                if (pad && pad[row]) {
                    for (int j = 0; j < n; j++) w[j] = -INFINITY, k[j] = v[j] = a[j] = b[j] = 0;
                } else {
                    x.read(dtype, in, vec, at, c, n);
                    for (int j = 0; j < n; j++) w[j] = log_sigmoid(x.w[j]) - 0.5f;
                    for (int j = 0; j < n; j++) k[j] = x.k[j] * (1 + (x.a[j] - 1) * vec[KA][c + j]);
                    for (int j = 0; j < n; j++) v[j] = x.v[j];
                    if (in[V_LOW])
                        for (int j = 0; j < n; j++) v[j] += (x.v_first[j] - x.v[j]) * x.mix[j];
                    for (int j = 0; j < n; j++) a[j] = -x.kk[j], b[j] = x.kk[j] * x.a[j];
                }
                for (int i = 0; i < 5; i++) write_row(dtype, out[i], at, n, results[i]);
            }
    });
}

// dout: of w k v a b. din: of the activations, in their order. dvec: (blocks, N_VECTORS, C).
EXPORT int operands_backward(int threads, int dtype, std::int64_t rows, std::int64_t H, std::int64_t N,
                             const void* const* in, const float* const* vec, const unsigned char* pad,
                             const void* const* dout, void* const* din, float* dvec) {
    const int n = (int)N;
    return for_each_block<Head>(rows, threads, [&](Head& x, std::int64_t block, std::int64_t row, std::int64_t end) {
        float dw[MAX_N], dk[MAX_N], dv[MAX_N], da[MAX_N], db[MAX_N], dmix[MAX_N], dfirst[MAX_N];
        float* grads[] = {dw, dk, dv, da, db};
        float* results[] = {dk, dv, dw, da, dmix, dfirst};
        float* sums = dvec + block * N_VECTORS * H * N;
        std::memset(sums, 0, N_VECTORS * H * N * sizeof(float));
        for (; row < end; row++)
            for (std::int64_t c = 0; c < H * N; c += N) {
                const std::int64_t at = row * H * N + c, C = H * N;
                x.read(dtype, in, vec, at, c, n);
                for (int i = 0; i < 5; i++) read_row(dtype, dout[i], at, n, grads[i]);
                if (pad && pad[row])
                    for (auto g : grads) std::memset(g, 0, n * sizeof(float));
                const float *k_a = vec[KA] + c, *k_k = vec[KK] + c, inverse = 1 / x.norm;
                float dkk[MAX_N], dk_a[MAX_N], dk_k[MAX_N];
                // through b = kk a and a = -kk to kk, and on through the normalisation to k * k_k
                for (int j = 0; j < n; j++) dkk[j] = db[j] * x.a[j] - da[j];
                const float along = dot(n, dkk, x.kk);
                for (int j = 0; j < n; j++) dkk[j] = (dkk[j] - along * x.kk[j]) * inverse;
                for (int j = 0; j < n; j++) dk_k[j] = dkk[j] * x.k[j], dk_a[j] = dk[j] * x.k[j] * (x.a[j] - 1);
                for (int j = 0; j < n; j++)
                    da[j] = (db[j] * x.kk[j] + dk[j] * x.k[j] * k_a[j]) * x.a[j] * (1 - x.a[j]);
                for (int j = 0; j < n; j++) dk[j] = dk[j] * (1 + (x.a[j] - 1) * k_a[j]) + dkk[j] * k_k[j];
                for (int j = 0; j < n; j++) dw[j] *= sigmoid(-x.w[j]);
                if (in[V_LOW]) {
                    for (int j = 0; j < n; j++)
                        dmix[j] = dv[j] * (x.v_first[j] - x.v[j]) * x.mix[j] * (1 - x.mix[j]);
                    for (int j = 0; j < n; j++) dfirst[j] = dv[j] * x.mix[j], dv[j] -= dfirst[j];
                    add_to(sums + V0 * C + c, n, dmix);
                }
                add_to(sums + W0 * C + c, n, dw);
                add_to(sums + A0 * C + c, n, da);
                add_to(sums + KK * C + c, n, dk_k);
                add_to(sums + KA * C + c, n, dk_a);
                for (int i = 0; i < N_IN; i++)
                    if (din[i]) write_row(dtype, din[i], at, n, results[i]);
            }
    });
}

// ---- readout: (group_norm(y) + <r, k * r_k> v) * g

enum { Y, R, KEY, VALUE, G, N_READ };      // activations
enum { R_K, LN_W, LN_B, N_READ_VECTORS };  // parameters of C elements

namespace {
struct Readout {
    float in[N_READ][MAX_N];
    float normed[MAX_N], out[MAX_N], rstd, bonus;

    void read(int dtype, const void* const* from, const float* const* vec, std::int64_t at, std::int64_t c, int N,
              float eps) {
        for (int i = 0; i < N_READ; i++) read_row(dtype, from[i], at, N, in[i]);
        float rk[MAX_N];
        const float mean = dot(N, in[Y]) / N;
        for (int j = 0; j < N; j++) normed[j] = in[Y][j] - mean;
        rstd = 1.0f / std::sqrt(dot(N, normed, normed) / N + eps);
        for (int j = 0; j < N; j++) normed[j] *= rstd, rk[j] = in[R][j] * vec[R_K][c + j];
        bonus = dot(N, rk, in[KEY]);
        for (int j = 0; j < N; j++) out[j] = normed[j] * vec[LN_W][c + j] + vec[LN_B][c + j] + bonus * in[VALUE][j];
    }
};
}  // namespace

EXPORT int readout_forward(int threads, int dtype, std::int64_t rows, std::int64_t H, std::int64_t N, float eps,
                           const void* const* in, const float* const* vec, void* out) {
    if (N > MAX_N) return 2;  // 1 is: no memory
    const int n = (int)N;
    return for_each_block<Readout>(rows, threads, [&](Readout& x, std::int64_t, std::int64_t row, std::int64_t end) {
        for (; row < end; row++)
            for (std::int64_t c = 0; c < H * N; c += N) {
                x.read(dtype, in, vec, row * H * N + c, c, n, eps);
                for (int j = 0; j < n; j++) x.out[j] *= x.in[G][j];
                write_row(dtype, out, row * H * N + c, n, x.out);
            }
    });
}

// din: of y r k v g. dvec: (blocks, N_READ_VECTORS, C).
EXPORT int readout_backward(int threads, int dtype, std::int64_t rows, std::int64_t H, std::int64_t N, float eps,
                            const void* const* in, const float* const* vec, const void* dout, void* const* din,
                            float* dvec) {
    const int n = (int)N;
    return for_each_block<Readout>(rows, threads, [&](Readout& x, std::int64_t block, std::int64_t row,
                                                      std::int64_t end) {
        float d[MAX_N], dn[MAX_N], grads[N_READ][MAX_N];
        float* sums = dvec + block * N_READ_VECTORS * H * N;
        std::memset(sums, 0, N_READ_VECTORS * H * N * sizeof(float));
        for (; row < end; row++)
            for (std::int64_t c = 0; c < H * N; c += N) {
                const std::int64_t at = row * H * N + c, C = H * N;
                x.read(dtype, in, vec, at, c, n, eps);
                read_row(dtype, dout, at, n, d);
                for (int j = 0; j < n; j++) grads[G][j] = d[j] * x.out[j], d[j] *= x.in[G][j];
                const float d_bonus = dot(n, d, x.in[VALUE]);
                for (int j = 0; j < n; j++) dn[j] = d[j] * vec[LN_W][c + j];
                const float mean = dot(n, dn) / n, along = dot(n, dn, x.normed) / n, *r_k = vec[R_K] + c;
                const float *r = x.in[R], *k = x.in[KEY];
                float dr_k[MAX_N], dln_w[MAX_N];
                for (int j = 0; j < n; j++) grads[Y][j] = x.rstd * (dn[j] - mean - x.normed[j] * along);
                for (int j = 0; j < n; j++) grads[R][j] = d_bonus * k[j] * r_k[j];
                for (int j = 0; j < n; j++) grads[KEY][j] = d_bonus * r[j] * r_k[j];
                for (int j = 0; j < n; j++) grads[VALUE][j] = d[j] * x.bonus;
                for (int j = 0; j < n; j++) dr_k[j] = d_bonus * r[j] * k[j], dln_w[j] = d[j] * x.normed[j];
                add_to(sums + R_K * C + c, n, dr_k);
                add_to(sums + LN_W * C + c, n, dln_w);
                add_to(sums + LN_B * C + c, n, d);
                for (int i = 0; i < N_READ; i++) write_row(dtype, din[i], at, n, grads[i]);
            }
    });
}

// ---- relu_squared: max(x, 0)^2, of n elements

constexpr std::int64_t PIECE = 1 << 15;  // elements of a task

// dout null: forward, out = max(x, 0)^2; else backward, out = 2 max(x, 0) dout.
EXPORT int relu_squared(int threads, int dtype, std::int64_t n, const void* x, const void* dout, void* out) {
    return !for_each_task<Nothing>((n + PIECE - 1) / PIECE, threads, [&](Nothing&, std::int64_t piece) {
        float y[STRIP], g[STRIP];
        for (std::int64_t at = piece * PIECE; at < std::min(n, (piece + 1) * PIECE); at += STRIP) {
            const int m = (int)std::min<std::int64_t>(STRIP, n - at);
            read_row(dtype, x, at, m, y);
            for (int j = 0; j < m; j++) y[j] = y[j] < 0 ? 0.0f : y[j];  // a NaN stays one
            if (dout) read_row(dtype, dout, at, m, g);
            for (int j = 0; j < m; j++) y[j] *= dout ? 2 * g[j] : y[j];
            write_row(dtype, out, at, m, y);
        }
    });
}
