// One token through a whole RWKV-7 on a CPU: all layers and the head in one call (model.py has the equations).
//
// Decoding reads every weight once a token and computes little with it, so it takes as long as the memory needs to
// deliver the weights. Therefore: weights are fp32, bf16 or int8 (one scale a row) and widened in registers, everything
// else is fp32; threads start once a token and go through five phases a layer, in which they draw tasks (16 rows of a
// matrix or more, or a head) from a counter. A row is computed the same way by whichever thread draws it and whatever
// shares the batch: results depend on neither.
//
// The width C, the head size N, the width of the channel mix F and the ranks are multiples of 16 (decode.py pads the
// ranks), with int8 weights C and F of 64. Matrices are (n_out, n_in) row after row. State, fp32: for each layer
// x_att (B,C), S (B,H,N,N) as [value][key], x_ffn (B,C); updated in place.

#include <cmath>

#include "cpu.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

// ---- what decode.py hands over; the order of the fields is the interface

struct Matrix {
    const void* w;
    const float* scale;  // of each row; int8 only
};

struct Layer {
    const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias, *mix[6], *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_x_weight,
        *ln_x_bias, *ffn_mix;  // mix: r w k v a g
    Matrix receptance, key, value, output, ffn_key, ffn_value, down[4], up[4];  // low-rank pairs: w a v g
};

struct Model {
    const void* emb;
    const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias;
    Matrix head;
    Layer layers[1];  // as many as there are
};

struct Sizes {
    std::int64_t L, C, V, H, N, F, rank[4], kind, low_kind, emb_kind;  // low_kind: of att.value and the low-rank pairs
};

// ---- rows of a matrix times vectors

enum Kind { FP32, BF16, INT8 };
enum Act { STORE, ADD, TANH, SIGMOID, RELU2 };

// widen: Q * W consecutive weights of a row as floats; Q independent sums also hide an addition's latency.
// int8 weights come in groups of 64, 16 words of four. The weights i, i+16, i+32, i+48 of a group are what word i of it
// is worth, as a signed number, after a shift to the left by 24, 16, 8 and 0 bits, over 2^24: one byte each, and as a
// fraction the bytes below it, which decode.py subtracts before it rounds. So nothing is masked or moved across lanes.
constexpr int Q = 4, GROUP = 64, WORDS = 16;
constexpr float UNIT = 1.0f / (1 << 24);

#if defined(__GNUC__)
typedef std::uint16_t vu16 __attribute__((vector_size(W * 2)));
typedef std::uint32_t vu32 __attribute__((vector_size(W * 4)));
typedef std::int32_t vi32 __attribute__((vector_size(W * 4)));

static inline vf widen(const std::uint16_t* p) {
    vu16 x;
    std::memcpy(&x, p, sizeof x);
    return (vf)(__builtin_convertvector(x, vu32) << 16);
}
static inline void widen(const std::int8_t* p, vf* out) {
    vi32 x;
    std::memcpy(&x, p, sizeof x);
    for (int q = 0; q < Q; q++) out[q] = __builtin_convertvector(x << (24 - 8 * q), vf);
}
static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
#else
static inline vf widen(const std::uint16_t* p) {
    vf r;
    read_row(1, p, 0, W, r.x);
    return r;
}
static inline void widen(const std::int8_t* p, vf* out) {
    std::uint32_t x[W];
    std::memcpy(x, p, sizeof x);
    for (int q = 0; q < Q; q++)
        for (int i = 0; i < W; i++) out[q].x[i] = (float)(std::int32_t)(x[i] << (24 - 8 * q));
}
static inline void prefetch(const void*) {}
#endif
static inline vf widen(const float* p) { return load(p); }
template <class T>
static inline void widen(const T* p, vf* out) {
    for (int q = 0; q < Q; q++) out[q] = widen(p + q * W);
}

constexpr int MAX_B = W == 16 ? 4 : 2;  // vectors that a matrix is multiplied with at once
constexpr int AHEAD = 4096;             // bytes that the weights are prefetched ahead

// lanes[b * W + j], j < R: sums over the lanes of these are <row j, x_b>. Rows of n elements.
template <int NB, int R, class T>
static inline void rows_times(const T* w, std::int64_t n, const float* x, std::int64_t x_stride, float* lanes) {
    vf acc[R][NB][Q], m[Q];
    for (int j = 0; j < R; j++)
        for (int b = 0; b < NB; b++)
            for (int q = 0; q < Q; q++) acc[j][b][q] = set1(0);
    std::int64_t c = 0;
    for (; c + Q * W <= n; c += Q * W) {
        // where in x the Q registers lie: one after the other, or 16 apart in a group of int8 weights
        constexpr int apart = sizeof(T) == 1 ? WORDS : W;
        const float* xc = x + (sizeof(T) == 1 ? c / GROUP * GROUP + c % GROUP / Q : c);
        for (int j = 0; j < R; j++) {
            if constexpr (R > 1) {  // R rows are one stretch of memory; one row alone is what processors foresee
                const char* ahead = (const char*)(w + R * c + j * Q * W) + AHEAD;
                for (int i = 0; i < Q * W * (int)sizeof(T); i += 64) prefetch(ahead + i);
            }
            widen(w + j * n + c, m);
            for (int q = 0; q < Q; q++)
                for (int b = 0; b < NB; b++) acc[j][b][q] += m[q] * load(xc + b * x_stride + q * apart);
        }
    }
    if constexpr (sizeof(T) > 1)  // int8 rows are whole groups
        for (; c < n; c += W)
            for (int j = 0; j < R; j++)
                for (int b = 0; b < NB; b++) acc[j][b][0] += widen(w + j * n + c) * load(x + b * x_stride + c);
    for (int j = 0; j < R; j++)
        for (int b = 0; b < NB; b++)
            store(lanes + (b * W + j) * W, (acc[j][b][0] + acc[j][b][1]) + (acc[j][b][2] + acc[j][b][3]));
}

// sums[b * W + j] = <row j, x_b> for W rows of n elements, or fewer at the end of a matrix.
template <int NB, class T>
static void block(const T* w, int rows, std::int64_t n, const float* x, std::int64_t x_stride, float* sums) {
    alignas(64) float lanes[NB * W * W];
    if (rows < W) std::memset(lanes, 0, sizeof lanes);
    constexpr int R = sizeof(T) == 1 && NB == 1 ? 2 : 1;  // int8 is bound by the loads of x as well: rows share them
    int j = 0;
    for (; j + R <= rows; j += R) rows_times<NB, R>(w + j * n, n, x, x_stride, lanes + j * W);
    for (; j < rows; j++) rows_times<NB, 1>(w + j * n, n, x, x_stride, lanes + j * W);
    for (int b = 0; b < NB; b++) store(sums + b * W, sum_rows(lanes + b * W * W));
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_row(-x)); }

static inline void finish(int act, const float* sums, int n, float* y) {
    for (int i = 0; i < n; i++) {
        float s = sums[i];
        switch (act) {
            case STORE: y[i] = s; break;
            case ADD: y[i] += s; break;
            case TANH: y[i] = std::tanh(s); break;
            case SIGMOID: y[i] = sigmoid(s); break;
            case RELU2: y[i] = s > 0 ? s * s : 0.0f; break;
        }
    }
}

// A matrix, the vectors x (B, n_in) and y (B, y_stride) of its product, and what happens to the product.
struct Product {
    Matrix m;
    std::int64_t kind, n_in, n_out;
    const float* x;
    float* y;
    std::int64_t y_stride;
    int act;

    // Rows from..to-1, for all B vectors, into y[0..to-from).
    void rows(std::int64_t from, std::int64_t to, std::int64_t B) const {
        switch (kind) {
            case FP32: return rows((const float*)m.w, from, to, B);
            case BF16: return rows((const std::uint16_t*)m.w, from, to, B);
            case INT8: return rows((const std::int8_t*)m.w, from, to, B);
        }
    }

    template <class T>
    void rows(const T* w, std::int64_t from, std::int64_t to, std::int64_t B) const {
        alignas(64) float sums[MAX_B * W];
        for (std::int64_t b0 = 0; b0 < B; b0 += MAX_B)
            for (std::int64_t i = from; i < to; i += W) {
                const int nb = (int)std::min<std::int64_t>(MAX_B, B - b0), n = (int)std::min<std::int64_t>(W, to - i);
                const T* first = w + i * n_in;
                const float* xs = x + b0 * n_in;
                if (nb == 1) block<1>(first, n, n_in, xs, n_in, sums);
                else if (nb == 2) block<2>(first, n, n_in, xs, n_in, sums);
                else if (nb == 3) block<std::min(3, MAX_B)>(first, n, n_in, xs, n_in, sums);
                else block<MAX_B>(first, n, n_in, xs, n_in, sums);
                for (int b = 0; b < nb; b++) {
                    float* s = sums + b * W;
                    for (int j = 0; kind == INT8 && j < n; j++) s[j] *= m.scale[i + j] * UNIT;
                    finish(act, s, n, y + (b0 + b) * y_stride + i - from);
                }
            }
    }
};

// ---- the small pieces

static inline float sum_lanes_of(vf x) {
    alignas(64) float rows[W * W] = {};
    store(rows, x);
    alignas(64) float out[W];
    store(out, sum_rows(rows));
    return out[0];
}

static float dot(std::int64_t n, const float* x, const float* y) {
    vf s = set1(0);
    for (std::int64_t i = 0; i < n; i += W) s += load(x + i) * load(y + i);
    return sum_lanes_of(s);
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias
static void normalize(std::int64_t n, const float* x, const float* weight, const float* bias, float eps, float* out) {
    vf s = set1(0);
    for (std::int64_t i = 0; i < n; i += W) s += load(x + i);
    const float mean = sum_lanes_of(s) / n;
    for (std::int64_t i = 0; i < n; i++) out[i] = x[i] - mean;
    const float scale = 1.0f / std::sqrt(dot(n, out, out) / n + eps);
    for (std::int64_t i = 0; i < n; i++) out[i] = out[i] * scale * weight[i] + bias[i];
}

// One step of the recurrence, of one head: S (N, N) [value][key] in place, y = S r.
static void recur(std::int64_t N, float* S, const float* r, const float* d, const float* k, const float* v,
                  const float* a, const float* b, float* y) {
    alignas(64) float lanes[W * W], sa[W];
    for (std::int64_t j0 = 0; j0 < N; j0 += W) {
        for (int j = 0; j < W; j++) {
            vf s = set1(0);
            for (std::int64_t i = 0; i < N; i += W) s += load(S + (j0 + j) * N + i) * load(a + i);
            store(lanes + j * W, s);
        }
        store(sa, sum_rows(lanes));
        for (int j = 0; j < W; j++) {
            vf s = set1(0), SA = set1(sa[j]), V = set1(v[j0 + j]);
            for (std::int64_t i = 0; i < N; i += W) {
                float* p = S + (j0 + j) * N + i;
                vf x = load(p) * load(d + i) + SA * load(b + i) + V * load(k + i);
                store(p, x);
                s += x * load(r + i);
            }
            store(lanes + j * W, s);
        }
        store(y + j0, sum_rows(lanes));
    }
}

// ---- the token

static inline void pause() {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    __builtin_ia32_pause();
#endif
}

// Tasks that may run at the same time. A phase ends when its tasks are done, whether or not every thread took part: one
// that lost its core while it waited holds nobody up. Late, it may read what others overwrite meanwhile, but whatever
// it makes of that is for a phase that has no tasks left.
struct Phase {
    alignas(64) std::atomic<std::int64_t> next{0};
    alignas(64) std::atomic<std::int64_t> done{0};
};

struct Token {
    static constexpr int PHASES = 5;  // of a layer

    const Sizes& z;
    const Model& m;
    const std::int64_t *tokens, B;
    float *state, *logits;
    const int threads;
    std::vector<Phase> phases;
    std::atomic<int> started{0};
    std::vector<float> memory;
    std::int64_t private_size;
    // shared by the threads, (B, size): residual stream, its norm, r k v and layer 0's v, low-rank middles, output of
    // the heads, middle of the channel mix
    float *x, *seen, *r, *k, *v, *v_first, *low[4], *out, *f;

    // Throws std::bad_alloc.
    Token(const Sizes& z, const Model& m, const std::int64_t* tokens, std::int64_t B, float* state, float* logits,
          int threads)
        : z(z), m(m), tokens(tokens), B(B), state(state), logits(logits), threads(threads), phases(z.L * PHASES + 2) {
        std::int64_t low_size = z.rank[0] + z.rank[1] + z.rank[2] + z.rank[3];
        private_size = B * 7 * z.C + (B * 4 + 6) * z.N;
        memory.resize(B * (7 * z.C + low_size + z.F) + threads * private_size);
        float* p = memory.data();
        for (float** to : {&x, &seen, &r, &k, &v, &v_first, &out}) *to = p, p += B * z.C;
        for (int i = 0; i < 4; i++) low[i] = p, p += B * z.rank[i];
        f = p;
    }

    // Run task(0) .. task(n-1), those that this thread draws, and wait for the others.
    template <class F>
    void share(int phase, std::int64_t n, F task) {
        Phase& p = phases[phase];
        std::int64_t i, drawn = 0;
        for (; (i = p.next.fetch_add(1, std::memory_order_relaxed)) < n; drawn++) task(i);
        if (drawn) p.done.fetch_add(drawn, std::memory_order_release);
        for (int spins = 0; p.done.load(std::memory_order_acquire) < n; spins++) {
            if (spins < 10000) pause();
            else std::this_thread::yield();  // the one that we wait for may need our core
        }
    }

    // All the products, and a copy of (B,C).
    void multiply(int phase, const Product* products, int n, const float* from, float* to) {
        std::int64_t total = 0, tasks = 0;
        for (int i = 0; i < n; i++) total += products[i].n_out;
        // 8 a thread: a thread that is slow for a while delays the others little, and still reads long stretches
        const std::int64_t chunk = std::max<std::int64_t>(16, total / (8 * threads) / 16 * 16);
        const auto chunks = [&](const Product& p) { return (p.n_out + chunk - 1) / chunk; };
        for (int i = 0; i < n; i++) tasks += chunks(products[i]);
        share(phase, tasks, [&](std::int64_t task) {
            if (task == 0 && to) std::memcpy(to, from, B * z.C * sizeof(float));
            const Product* p = products;
            for (; task >= chunks(*p); p++) task -= chunks(*p);
            Product part = *p;
            part.y += task * chunk;
            part.rows(task * chunk, std::min(p->n_out, (task + 1) * chunk), B);
        });
    }

    // normed = layer norm of the residual stream; mixed[i] = its lerps with the token before, mix[i] of them.
    void shift(const float* weight, const float* bias, const float* before, const float* const* mix, int n,
               float* normed, float* mixed) {
        for (std::int64_t b = 0; b < B; b++) {
            float* to = normed + b * z.C;
            normalize(z.C, x + b * z.C, weight, bias, 1e-5f, to);
            for (int i = 0; i < n; i++) {
                float* out = mixed + (i * B + b) * z.C;
                for (std::int64_t c = 0; c < z.C; c++) out[c] = to[c] + (before[b * z.C + c] - to[c]) * mix[i][c];
            }
        }
    }

    // Everything of the time mix that is a head's own: gates, decay and keys, the recurrence, its norm, bonus and gate.
    void head(const Layer& l, std::int64_t layer, std::int64_t h, float* S, float* scratch) {
        const std::int64_t N = z.N, C = z.C;
        float* gates[4];  // what the low-rank pairs say about w a v g
        for (int i = 0; i < 4; i++) {
            gates[i] = scratch + i * B * N;
            if (i == 2 && layer == 0) continue;
            Product{l.up[i], z.low_kind, z.rank[i], C, low[i], gates[i], N, STORE}.rows(h * N, (h + 1) * N, B);
        }
        float *d = scratch + 4 * B * N, *kk = d + N, *k_in = kk + N, *a_in = k_in + N, *b_in = a_in + N, *y = b_in + N;
        for (std::int64_t b = 0; b < B; b++) {
            const std::int64_t at = b * C + h * N, c = h * N;
            const float *gw = gates[0] + b * N, *ga = gates[1] + b * N, *gv = gates[2] + b * N, *gg = gates[3] + b * N;
            float *vb = v + at, *first = v_first + at, *o = out + at;
            if (layer == 0) std::memcpy(first, vb, N * sizeof(float));
            else
                for (std::int64_t i = 0; i < N; i++) vb[i] += (first[i] - vb[i]) * sigmoid(l.v0[c + i] + gv[i]);
            // exp(-softplus(-x) - 1/2) = sigmoid(x) / sqrt(e)
            for (std::int64_t i = 0; i < N; i++) d[i] = exp_row(-0.60653066f * sigmoid(l.w0[c + i] + gw[i]));
            for (std::int64_t i = 0; i < N; i++) kk[i] = k[at + i] * l.k_k[c + i];
            const float scale = 1.0f / std::max(std::sqrt(dot(N, kk, kk)), 1e-12f);
            for (std::int64_t i = 0; i < N; i++) {
                const float a = sigmoid(l.a0[c + i] + ga[i]), removal = kk[i] * scale;
                k_in[i] = k[at + i] * (1.0f + (a - 1.0f) * l.k_a[c + i]);
                a_in[i] = -removal;
                b_in[i] = removal * a;
            }
            recur(N, S + (b * z.H + h) * N * N, r + at, d, k_in, vb, a_in, b_in, y);
            normalize(N, y, l.ln_x_weight + c, l.ln_x_bias + c, 1e-5f * N, o);
            for (std::int64_t i = 0; i < N; i++) y[i] = r[at + i] * l.r_k[c + i];
            const float bonus = dot(N, y, k_in);
            for (std::int64_t i = 0; i < N; i++) o[i] = (o[i] + bonus * vb[i]) * gg[i];
        }
    }

    void layer(std::int64_t i, float* normed) {
        const Layer& l = m.layers[i];
        const std::int64_t C = z.C, row = B * C, low_kind = z.low_kind, *rank = z.rank;
        const int phase = (int)i * PHASES + 1;
        float *x_att = state + i * (2 * row + row * z.N), *S = x_att + row, *x_ffn = S + row * z.N;
        // Norms and lerps are less work than another phase: every thread makes its own
        float *mixed = normed + row, *scratch = mixed + 6 * row;

        shift(l.ln1_weight, l.ln1_bias, x_att, l.mix, 6, normed, mixed);
        const float *xr = mixed, *xw = mixed + row, *xk = xw + row, *xv = xk + row, *xa = xv + row, *xg = xa + row;
        const Product into_heads[] = {
            {l.receptance, z.kind, C, C, xr, r, C, STORE},
            {l.key, z.kind, C, C, xk, k, C, STORE},
            {l.value, low_kind, C, C, xv, v, C, STORE},
            {l.down[0], low_kind, C, rank[0], xw, low[0], rank[0], TANH},
            {l.down[1], low_kind, C, rank[1], xa, low[1], rank[1], STORE},
            {l.down[3], low_kind, C, rank[3], xg, low[3], rank[3], SIGMOID},
            {l.down[2], low_kind, C, rank[2], xv, low[2], rank[2], STORE},  // the last: layer 0 has none
        };
        multiply(phase, into_heads, i == 0 ? 6 : 7, normed, seen);
        share(phase + 1, z.H, [&](std::int64_t h) { head(l, i, h, S, scratch); });
        const Product output{l.output, z.kind, C, C, out, x, C, ADD};
        multiply(phase + 2, &output, 1, seen, x_att);

        shift(l.ln2_weight, l.ln2_bias, x_ffn, &l.ffn_mix, 1, normed, mixed);
        const Product key{l.ffn_key, z.kind, C, z.F, mixed, f, z.F, RELU2};
        multiply(phase + 3, &key, 1, normed, seen);
        const Product value{l.ffn_value, z.kind, z.F, C, f, x, C, ADD};
        multiply(phase + 4, &value, 1, seen, x_ffn);
    }

    // What every thread does.
    void run() {
        float* own = memory.data() + memory.size() - (started++ + 1) * private_size;
        share(0, 1, [&](std::int64_t) {
            for (std::int64_t b = 0; b < B; b++) {
                read_row((int)z.emb_kind, m.emb, tokens[b] * z.C, (int)z.C, own);
                normalize(z.C, own, m.ln0_weight, m.ln0_bias, 1e-5f, x + b * z.C);
            }
        });
        for (std::int64_t i = 0; i < z.L; i++) layer(i, own);
        for (std::int64_t b = 0; b < B; b++)
            normalize(z.C, x + b * z.C, m.ln_out_weight, m.ln_out_bias, 1e-5f, own + b * z.C);
        const Product to_logits{m.head, z.kind, z.C, z.V, own, logits, z.V, STORE};
        multiply((int)z.L * PHASES + 1, &to_logits, 1, nullptr, nullptr);
    }
};

// tokens (B,) -> logits (B,V); state is updated. Returns 0, or 1 if memory ran out (and then nothing has changed).
EXPORT int decode_token(int threads, const Sizes* sizes, const Model* model, std::int64_t B, const std::int64_t* tokens,
                        float* state, float* logits) {
    try {
        Token token(*sizes, *model, tokens, B, state, logits, threads);
        on_threads(threads, [&] { token.run(); });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// Ask for huge pages, now for what already has memory: with 4 KiB pages the processor has so many addresses to look up
// that decoding was measured 10 to 30 % slower. Only a request; where the system can't, nothing changes.
EXPORT int decode_huge_pages(char* p, std::int64_t bytes) {
#ifdef __linux__
    const std::uintptr_t page = 4096, from = ((std::uintptr_t)p + page - 1) / page * page;
    const std::uintptr_t to = ((std::uintptr_t)p + bytes) / page * page;
    if (from < to) {
        madvise((void*)from, to - from, 14);  // MADV_HUGEPAGE: from now on
        madvise((void*)from, to - from, 25);  // MADV_COLLAPSE (Linux 6.1): what is there already
    }
#endif
    return 0;
}
