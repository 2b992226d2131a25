// The WKV7 recurrence on a CPU, forward and backward, behind a plain C interface (loaded with ctypes).
//
//   S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T ,   y_t = S_t r_t ,   d_t = exp(-exp(w_t))
//
// Operands (B,T,H,N) contiguous, fp32 (dtype 0) or bf16 (dtype 1); states (B,H,N,N) fp32, [value][key].
// One task is one (b,h); its state (16 KiB at N = 64) stays in the L1 cache. Threads share out the B*H tasks, and a
// task is computed the same way by whichever thread takes it, so results do not depend on the number of threads.
//
// Forward keeps the state transposed, [key][value], with the values along the SIMD lanes: per step and key one pass
// does S*d + sa*b + v*k, adds to y, and already adds to the next step's sa = S a. No sum ever runs across lanes.
// Backward needs S_{t-1} at every step. Dividing by the decay to walk back amplifies rounding, so states are replayed
// from fp32 checkpoints, one every CHUNK steps. There the keys are along the lanes: five of the seven sums run over
// values (plain accumulation), and the two that run over keys (dv, dsa) are collected and transposed 16 rows at a time.
//
// Saved by forward for backward: checkpoints (B,H,ceil(T/CHUNK),N,N) as [key][value], and sa (B,H,T,N), both fp32.

#include "cpu.h"

constexpr int CHUNK = 32;  // steps between checkpoints
constexpr int AHEAD = 2;   // steps that forward prefetches rows ahead

#if defined(__AVX512F__)  // registers that a block of columns is wide
constexpr int BLOCK_FWD = 4, BLOCK_BWD = 2;
#elif defined(__AVX__)
constexpr int BLOCK_FWD = 2, BLOCK_BWD = 1;
#elif defined(__aarch64__)
constexpr int BLOCK_FWD = 4, BLOCK_BWD = 2;
#else
constexpr int BLOCK_FWD = 2, BLOCK_BWD = 1;
#endif

namespace {  // another file of this library may use a name of this one for something else

struct Shape {
    std::int64_t B, T, H, N;
    int dtype;
    int size() const { return size_of(dtype); }
    std::int64_t row(std::int64_t b, std::int64_t t, std::int64_t h) const { return ((b * T + t) * H + h) * N; }
    void read(const void* p, std::int64_t at, float* out) const { read_row(dtype, p, at, (int)N, out); }
    void write(void* p, std::int64_t at, const float* x) const { write_row(dtype, p, at, (int)N, x); }
};

// A row of one head is far from the next step's (H*N elements), too far for the processor to see a pattern: tell it.
// Into the L2 cache: L1 is full of state.
static inline void prefetch_row(const void* p, std::int64_t at, std::int64_t N, int size) {
#if defined(__GNUC__)
    for (std::int64_t i = 0; i < N * size; i += 64) __builtin_prefetch((const char*)p + at * size + i, 0, 2);
#endif
}

// d = exp(-e), e = exp(w); exactly 1 and 0 at w = -inf, an identity step.
static inline void decay_row(int n, const float* w, float* d, float* e) {
    for (int i = 0; i < n; i++) {
        e[i] = w[i] < -87.0f ? 0.0f : exp_row(w[i]);
        d[i] = exp_row(-e[i]);
    }
}

// to[j][i] = from[i][j] for i < n, j < m, block by block.
static void transpose(int n, int m, const float* from, int from_stride, float* to, int to_stride) {
    for (int i0 = 0; i0 < n; i0 += 16)
        for (int j0 = 0; j0 < m; j0 += 16)
            for (int i = i0; i < std::min(i0 + 16, n); i++)
                for (int j = j0; j < std::min(j0 + 16, m); j++) to[j * to_stride + i] = from[i * from_stride + j];
}

// ---- forward of one (b,h); NP >= N is the padded size, and padding stays zero by itself

template <int NP>
struct Forward {
    static constexpr int Q = std::min(BLOCK_FWD, NP / W);
    alignas(64) float S[NP * NP], r[NP], w[NP], d[NP], e[NP], k[NP], v[NP], b[NP], a[NP], sa[NP], y[NP];

    // One step: S from t-1 to t, y_t, and in `sa` the next step's S a instead of this one's. `a` is the next step's.
    void step() {
        for (int c = 0; c < NP; c += Q * W) {
            vf SA[Q], V[Q], Y[Q], NEXT[Q];
            for (int q = 0; q < Q; q++) {
                SA[q] = load(sa + c + q * W);
                V[q] = load(v + c + q * W);
                Y[q] = NEXT[q] = set1(0);
            }
            for (int i = 0; i < NP; i++) {
                float* s = S + i * NP + c;
                vf D = set1(d[i]), B = set1(b[i]), K = set1(k[i]), R = set1(r[i]), A = set1(a[i]);
                for (int q = 0; q < Q; q++) {
                    vf x = load(s + q * W) * D + SA[q] * B + V[q] * K;
                    store(s + q * W, x);
                    Y[q] += x * R;
                    NEXT[q] += x * A;
                }
            }
            for (int q = 0; q < Q; q++) {
                store(y + c + q * W, Y[q]);
                store(sa + c + q * W, NEXT[q]);
            }
        }
    }

    void run(const Shape& s, std::int64_t task, const void* const* in, const float* s0, void* out, float* sT,
             float* checkpoints, float* saved_sa) {
        const std::int64_t bi = task / s.H, h = task % s.H, N = s.N, chunks = (s.T + CHUNK - 1) / CHUNK;
        std::memset(S, 0, sizeof S);
        std::memset(sa, 0, sizeof sa);
        if (s0) transpose(N, N, s0 + task * N * N, N, S, NP);
        if (s.T) s.read(in[4], s.row(bi, 0, h), a);
        for (int i = 0; i < N; i++)  // sa of the first step
            for (int j = 0; j < N; j++) sa[j] += S[i * NP + j] * a[i];
        for (std::int64_t t = 0; t < s.T; t++) {
            const std::int64_t at = s.row(bi, t, h);
            s.read(in[0], at, r);
            s.read(in[1], at, w);
            s.read(in[2], at, k);
            s.read(in[3], at, v);
            s.read(in[5], at, b);
            if (t + 1 < s.T) s.read(in[4], s.row(bi, t + 1, h), a);
            for (int m = 0; m < 6; m++) prefetch_row(in[m], at + AHEAD * s.H * N, N, s.size());
            prefetch_row(out, at + AHEAD * s.H * N, N, s.size());
            decay_row(N, w, d, e);
            if (checkpoints && t % CHUNK == 0)
                for (int i = 0; i < N; i++)
                    std::memcpy(checkpoints + ((task * chunks + t / CHUNK) * N + i) * N, S + i * NP, N * sizeof(float));
            if (saved_sa) std::memcpy(saved_sa + (task * s.T + t) * N, sa, N * sizeof(float));
            step();
            s.write(out, at, y);
        }
        transpose(N, N, S, NP, sT + task * N * N, N);
    }
};

// ---- backward of one (b,h)

// A chunk is done for ROWS rows (values) of the state at a time: rows meet only in the sums for dr dw dk da db. The
// replayed states of ROWS rows are 132 KiB at N = 64 and wait in the L2 cache, their rows of dS stay in L1.
template <int NP>
struct Backward {
    static constexpr int Q = std::min(BLOCK_BWD, NP / W), ROWS = 16, TILE = 8;
    struct Step {
        float r[NP], w[NP], k[NP], v[NP], a[NP], b[NP], dy[NP], sa[NP], d[NP], e[NP];
    };
    struct Gradient {
        float r[NP], w[NP], k[NP], v[NP], a[NP], b[NP], sa[NP];
    };
    alignas(64) float S[(CHUNK + 1) * ROWS * NP], dS[NP * NP], partial_v[ROWS * W], partial_sa[ROWS * W];
    Step steps[CHUNK];
    Gradient grads[CHUNK];

    // For rows j0 and after. LATER: finish step t1, going from G = dL/dS after it to that before it. EARLIER: begin the
    // step before, t0, by adding its dy r^T, and collecting its dv and dsa. Both read the state between the two, so
    // that doing them together loads everything once.
    template <bool LATER, bool EARLIER>
    void pass(int j0, const float* state, const Step* t1, Gradient* g1, const Step* t0, Gradient* g0) {
        for (int c = 0; c < NP; c += Q * W) {
            vf DK[Q], DB[Q], DD[Q], DA[Q], DR[Q], D[Q], A[Q], R[Q], K[Q], B[Q];
            for (int q = 0; q < Q; q++) {
                const int at = c + q * W;
                if (LATER) {
                    D[q] = load(t1->d + at), A[q] = load(t1->a + at);
                    DK[q] = load(g1->k + at), DB[q] = load(g1->b + at);
                    DD[q] = load(g1->w + at), DA[q] = load(g1->a + at);  // w: of d so far
                }
                if (EARLIER) {
                    R[q] = load(t0->r + at), K[q] = load(t0->k + at), B[q] = load(t0->b + at);
                    DR[q] = load(g0->r + at);
                }
            }
            for (int j = 0; j < ROWS; j++) {
                vf V, SA, DSA, DY, PV = set1(0), PSA = set1(0);
                if (LATER) V = set1(t1->v[j0 + j]), SA = set1(t1->sa[j0 + j]), DSA = set1(g1->sa[j0 + j]);
                if (EARLIER) DY = set1(t0->dy[j0 + j]);
                for (int q = 0; q < Q; q++) {
                    float* g = dS + (j0 + j) * NP + c + q * W;
                    vf G = load(g), s = load(state + j * NP + c + q * W);
                    if (LATER) {
                        DK[q] += G * V;
                        DB[q] += G * SA;
                        DD[q] += G * s;
                        DA[q] += s * DSA;
                        G = G * D[q] + DSA * A[q];
                    }
                    if (EARLIER) {
                        DR[q] += s * DY;
                        G += DY * R[q];
                        PV += G * K[q];
                        PSA += G * B[q];
                    }
                    store(g, G);
                }
                if (EARLIER) {
                    if (c) PV += load(partial_v + j * W), PSA += load(partial_sa + j * W);
                    store(partial_v + j * W, PV);
                    store(partial_sa + j * W, PSA);
                }
            }
            for (int q = 0; q < Q; q++) {
                const int at = c + q * W;
                if (LATER) {
                    store(g1->k + at, DK[q]), store(g1->b + at, DB[q]);
                    store(g1->w + at, DD[q]), store(g1->a + at, DA[q]);
                }
                if (EARLIER) store(g0->r + at, DR[q]);
            }
        }
        if (EARLIER)
            for (int j = 0; j < ROWS; j += W) {
                store(g0->v + j0 + j, sum_rows(partial_v + j * W));
                store(g0->sa + j0 + j, sum_rows(partial_sa + j * W));
            }
    }

    // Rows j0 and after of the states of n steps, from those at the start: S[0] before the first, S[i+1] after step i.
    // Tiles of it stay in registers over all steps.
    void replay(int j0, int n) {
        for (int c = 0; c < NP; c += Q * W)
            for (int j = 0; j < ROWS; j += TILE) {
                float* to = S + j * NP + c;
                vf x[TILE][Q];
                for (int m = 0; m < TILE; m++)
                    for (int q = 0; q < Q; q++) x[m][q] = load(to + m * NP + q * W);
                for (int i = 0; i < n; i++) {
                    const Step& t = steps[i];
                    to += ROWS * NP;
                    for (int m = 0; m < TILE; m++) {
                        vf SA = set1(t.sa[j0 + j + m]), V = set1(t.v[j0 + j + m]);
                        for (int q = 0; q < Q; q++) {
                            const int at = c + q * W;
                            x[m][q] = x[m][q] * load(t.d + at) + SA * load(t.b + at) + V * load(t.k + at);
                            store(to + m * NP + q * W, x[m][q]);
                        }
                    }
                }
            }
    }

    void read_step(const Shape& s, std::int64_t task, std::int64_t t, const void* const* in, const void* dy,
                   const float* saved_sa, Step& x) {
        const std::int64_t at = s.row(task / s.H, t, task % s.H);
        float* rows[] = {x.r, x.w, x.k, x.v, x.a, x.b};
        for (int m = 0; m < 6; m++) s.read(in[m], at, rows[m]);
        s.read(dy, at, x.dy);
        std::memcpy(x.sa, saved_sa + (task * s.T + t) * s.N, s.N * sizeof(float));
        decay_row((int)s.N, x.w, x.d, x.e);
    }

    void write_step(const Shape& s, std::int64_t at, const Step& x, Gradient& g, void* const* out) {
        for (int m = 0; m < s.N; m++) g.w[m] *= -x.d[m] * x.e[m];  // from d to w
        const float* rows[] = {g.r, g.w, g.k, g.v, g.a, g.b};
        for (int m = 0; m < 6; m++) s.write(out[m], at, rows[m]);
    }

    void run(const Shape& s, std::int64_t task, const void* const* in, const float* checkpoints, const float* saved_sa,
             const void* dy, const float* dsT, void* const* out, float* ds0) {
        const std::int64_t N = s.N, chunks = (s.T + CHUNK - 1) / CHUNK;
        std::memset(dS, 0, sizeof dS);
        for (int j = 0; dsT && j < N; j++) std::memcpy(dS + j * NP, dsT + (task * N + j) * N, N * sizeof(float));
        for (std::int64_t c = chunks - 1; c >= 0; c--) {
            const std::int64_t t0 = c * CHUNK;
            const int n = (int)std::min<std::int64_t>(CHUNK, s.T - t0);
            const float* checkpoint = checkpoints + (task * chunks + c) * N * N;
            for (int i = 0; i < n; i++) read_step(s, task, t0 + i, in, dy, saved_sa, steps[i]);
            std::memset(grads, 0, sizeof grads);
            for (int j0 = 0; j0 < N; j0 += ROWS) {
                std::memset(S, 0, ROWS * NP * sizeof(float));
                transpose((int)N, (int)std::min<std::int64_t>(ROWS, N - j0), checkpoint + j0, (int)N, S, NP);
                replay(j0, n);
                pass<false, true>(j0, S + n * ROWS * NP, nullptr, nullptr, &steps[n - 1], &grads[n - 1]);
                for (int i = n - 1; i >= 0; i--) {
                    const std::int64_t at = s.row(task / s.H, t0 + i, task % s.H), before = at - CHUNK * s.H * N;
                    const float* state = S + i * ROWS * NP;
                    if (i) pass<true, true>(j0, state, &steps[i], &grads[i], &steps[i - 1], &grads[i - 1]);
                    else pass<true, false>(j0, state, &steps[0], &grads[0], nullptr, nullptr);
                    if (j0 == 0 && c > 0) {  // bring what the chunk before needs meanwhile
                        for (int m = 0; m < 6; m++) prefetch_row(in[m], before, N, s.size());
                        prefetch_row(dy, before, N, s.size());
                        prefetch_row(saved_sa, (task * s.T + t0 + i - CHUNK) * N, N, 4);
                        prefetch_row(checkpoint, (i - CHUNK) * N * N / CHUNK, N * N / CHUNK, 4);
                    }
                    if (j0 + ROWS >= N) write_step(s, at, steps[i], grads[i], out);
                }
            }
        }
        for (int j = 0; j < N; j++) std::memcpy(ds0 + (task * N + j) * N, dS + j * NP, N * sizeof(float));
    }
};

}  // namespace

// ---- entry points

// Call f with the smallest padded size that holds N, as a std::integral_constant. False if none does.
template <class F>
static bool with_padded_size(std::int64_t N, F f) {
    if (N <= 16) return f(std::integral_constant<int, 16>{});
    if (N <= 32) return f(std::integral_constant<int, 32>{});
    if (N <= 64) return f(std::integral_constant<int, 64>{});
    if (N <= 128) return f(std::integral_constant<int, 128>{});
    return false;
}

// in: r w k v a b. s0, checkpoints and sa may be null. Returns 0 on success, 1 if N is too large, or memory ran out.
EXPORT int wkv7_forward(int threads, int dtype, std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t N,
                        const void* const* in, const float* s0, void* y, float* sT, float* checkpoints, float* sa) {
    Shape s{B, T, H, N, dtype};
    return !with_padded_size(N, [&](auto NP) {
        return for_each_task<Forward<NP>>(B * H, threads, [&](auto& worker, std::int64_t task) {
            worker.run(s, task, in, s0, y, sT, checkpoints, sa);
        });
    });
}

// out: the gradients of r w k v a b. dsT may be null.
EXPORT int wkv7_backward(int threads, int dtype, std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t N,
                         const void* const* in, const float* checkpoints, const float* sa, const void* dy,
                         const float* dsT, void* const* out, float* ds0) {
    Shape s{B, T, H, N, dtype};
    return !with_padded_size(N, [&](auto NP) {
        return for_each_task<Backward<NP>>(B * H, threads, [&](auto& worker, std::int64_t task) {
            worker.run(s, task, in, checkpoints, sa, dy, dsT, out, ds0);
        });
    });
}
