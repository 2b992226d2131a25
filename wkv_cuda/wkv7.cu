// The WKV7 recurrence on a GPU, step by step: exact for every decay, any T >= 1, fp32 or bf16 operands, fp32 states.
//
//   S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T ,   y_t = S_t r_t ,   d_t = exp(-exp(w_t))
//
// Operands (B,T,H,N) contiguous, states (B,H,N,N) [value][key]. This is for decoding (T = 1), fp32 and odd shapes, and
// the chunked kernels are tested against it. Results don't depend on timing: every sum has a fixed order.
//
// Forward: rows of the state are independent, so a block takes FWD_ROWS of them and FWD_LANES threads share a row.
// Backward needs S_{t-1} at every step. Dividing by the decay to walk back amplifies rounding; states are replayed
// instead from checkpoints (B,H,ceil(T/CHUNK),N,N), one every CHUNK steps, with sa = S a (B,H,T,N) saved as well.
// dS is kept twice in registers, by rows and by columns: sums over keys (dv, dsa) need rows, sums over values (the
// other five) need columns, and two updates are cheaper than a transposition every step.
//
// Compiled for one case with -D (sequential.py chooses): N, BF16 (0 or 1), CHUNK; TILE, steps whose operands forward
// has in shared memory; SUB, steps whose states backward has in registers; *_ROWS a block and *_LANES, threads a row
// (in backward, a column). At most 128 registers, so that 512 threads fit on a multiprocessor.
#include "device.cuh"

#if BF16
typedef u16 elem;
__device__ __forceinline__ float widen(elem x) { return from_bf16(x); }
__device__ __forceinline__ void put(elem* p, float x) { *p = to_bf16(x); }
#else
typedef float elem;
__device__ __forceinline__ float widen(elem x) { return x; }
__device__ __forceinline__ void put(elem* p, float x) { *p = x; }
#endif

// Sum over `lanes` adjacent threads, a power of two; all of them get it.
template <int lanes>
__device__ __forceinline__ float sum_over(float x) {
#pragma unroll
    for (int m = lanes / 2; m > 0; m /= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

// Where element e of a thread's share of a vector lies: the threads of a group take 4 elements in turns, so that they
// read one contiguous piece of memory at a time.
template <int lanes>
__device__ __forceinline__ int place(int lane, int e) { return (e / 4 * lanes + lane) * 4 + e % 4; }

template <int lanes, int E>
__device__ __forceinline__ void take(float (&x)[E], const float* vector, int lane) {
#pragma unroll
    for (int e = 0; e < E; e += 4) {
        float4 q = *(const float4*)(vector + place<lanes>(lane, e));
        x[e] = q.x, x[e + 1] = q.y, x[e + 2] = q.z, x[e + 3] = q.w;
    }
}

template <int lanes, int E>
__device__ __forceinline__ void give(float* vector, const float (&x)[E], int lane) {
#pragma unroll
    for (int e = 0; e < E; e += 4)
        *(float4*)(vector + place<lanes>(lane, e)) = make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]);
}

// Where a head's row of step 0 begins; the next step's is H * N further.
__device__ __forceinline__ i64 first_row(int head, i64 T, i64 H) { return (head / H * T * H + head % H) * N; }

// ---- forward

extern "C" __global__ void __launch_bounds__(FWD_ROWS* FWD_LANES, 512 / (FWD_ROWS * FWD_LANES))
    wkv7_forward(const elem* __restrict__ r, const elem* __restrict__ w, const elem* __restrict__ k,
                 const elem* __restrict__ v, const elem* __restrict__ a, const elem* __restrict__ b,
                 const float* __restrict__ s0, elem* __restrict__ y, float* __restrict__ sT,
                 float* __restrict__ checkpoints, float* __restrict__ saved_sa, i64 T, i64 H) {
    constexpr int R = FWD_ROWS, LANES = FWD_LANES, E = N / LANES, THREADS = R * LANES;
    constexpr int ROW = 5 * N + 3 * R;  // floats a step: r d k b a of N, v y sa of R
    constexpr int PER = TILE * N / THREADS, PER_V = (TILE * R + THREADS - 1) / THREADS;
    static_assert(CHUNK % TILE == 0 && TILE * N % THREADS == 0 && N % R == 0 && E % 4 == 0, "shape");
    DYNAMIC_SHARED(float, shared);
    const int tid = threadIdx.x, row = tid / LANES, lane = tid % LANES;
    const int head = blockIdx.x / (N / R), row0 = blockIdx.x % (N / R) * R;
    const i64 at = first_row(head, T, H), state = ((i64)head * N + row0 + row) * N, chunks = (T + CHUNK - 1) / CHUNK;

    // A tile's operands wait in registers while the tile before is worked on: that hides the way from memory.
    float next[5][PER], next_v[PER_V];
    auto fetch = [&](i64 t0) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            const int i = tid + j * THREADS;
            const bool inside = t0 + i / N < T;
            const i64 from = at + (t0 + i / N) * H * N + i % N;
            next[0][j] = inside ? widen(r[from]) : 0;
            next[1][j] = inside ? widen(w[from]) : 0;
            next[2][j] = inside ? widen(k[from]) : 0;
            next[3][j] = inside ? widen(b[from]) : 0;
            next[4][j] = inside ? widen(a[from]) : 0;
        }
#pragma unroll
        for (int j = 0; j < PER_V; j++) {
            const int i = tid + j * THREADS;
            next_v[j] = i < TILE * R && t0 + i / R < T ? widen(v[at + (t0 + i / R) * H * N + row0 + i % R]) : 0;
        }
    };
    auto deposit = [&](int steps) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            const int i = tid + j * THREADS;
            if (i / N >= steps) continue;
            float* to = shared + i / N * ROW + i % N;
            to[0] = next[0][j];
            to[N] = expf(-expf(next[1][j]));
#pragma unroll
            for (int m = 2; m < 5; m++) to[m * N] = next[m][j];
        }
#pragma unroll
        for (int j = 0; j < PER_V; j++) {
            const int i = tid + j * THREADS;
            if (i / R < steps) shared[i / R * ROW + 5 * N + i % R] = next_v[j];
        }
    };

    float S[E] = {};
    if (s0) take<LANES>(S, s0 + state, lane);
    fetch(0);
    for (i64 t0 = 0; t0 < T; t0 += TILE) {
        const int steps = T - t0 < TILE ? (int)(T - t0) : TILE;
        deposit(steps);
        __syncthreads();
        fetch(t0 + TILE);
        if (checkpoints && t0 % CHUNK == 0)
            give<LANES>(checkpoints + ((head * chunks + t0 / CHUNK) * N + row0 + row) * N, S, lane);
        for (int i = 0; i < steps; i++) {
            float* x = shared + i * ROW;
            float R_[E], D[E], K[E], B[E], A[E], sa = 0, sum = 0;
            take<LANES>(A, x + 4 * N, lane);
#pragma unroll
            for (int e = 0; e < E; e++) sa += S[e] * A[e];
            sa = sum_over<LANES>(sa);
            take<LANES>(R_, x, lane);
            take<LANES>(D, x + N, lane);
            take<LANES>(K, x + 2 * N, lane);
            take<LANES>(B, x + 3 * N, lane);
            const float value = x[5 * N + row];
#pragma unroll
            for (int e = 0; e < E; e++) {
                S[e] = S[e] * D[e] + sa * B[e] + value * K[e];
                sum += S[e] * R_[e];
            }
            sum = sum_over<LANES>(sum);
            if (lane == 0) x[5 * N + R + row] = sum, x[5 * N + 2 * R + row] = sa;
        }
        __syncthreads();
        for (int i = tid; i < steps * R; i += THREADS) {
            const float* x = shared + i / R * ROW + 5 * N + R + i % R;
            put(y + at + (t0 + i / R) * H * N + row0 + i % R, x[0]);
            if (saved_sa) saved_sa[((i64)head * T + t0 + i / R) * N + row0 + i % R] = x[R];
        }
    }
    give<LANES>(sT + state, S, lane);
}

// ---- backward

// A block takes BWD_ROWS rows of one head. Where that is not all of them, the sums over values are parts, to be added
// by wkv7_add_parts: `parts` is (N / BWD_ROWS, 5, B,T,H,N) fp32 in the order dr dw dk da db.
constexpr int LANES_C = BWD_LANES, BWD_THREADS = N * LANES_C, LANES_R = BWD_THREADS / BWD_ROWS;
constexpr int R = BWD_ROWS, E = N / LANES_R;  // rows a block; elements a thread, of either copy of dS
constexpr int OPERANDS = 5 * N + 3 * R;       // floats a step in shared memory: r d k b a of N, v dy sa of R
constexpr int PITCH = N + 8;                  // between results: 4 of them side by side hit 32 banks
constexpr int RESULTS = 5 * PITCH + R;        // floats a step: dk db dd da dr, then dv
static_assert(R / LANES_C == E && LANES_C >= 4 && E % 4 == 0 && CHUNK % SUB == 0, "shape");

// The column copy's state from one step to the next.
__device__ __forceinline__ void advance(float (&S)[E], const float* x, int key, int lane) {
    float V[E], SA[E];
    take<LANES_C>(V, x + 5 * N, lane);
    take<LANES_C>(SA, x + 5 * N + 2 * R, lane);
    const float d = x[N + key], k = x[2 * N + key], b = x[3 * N + key];
#pragma unroll
    for (int e = 0; e < E; e++) S[e] = S[e] * d + SA[e] * b + V[e] * k;
}

// Sums of four values over a group of LANES_C threads; thread i of the group gets the i % 4-th.
__device__ __forceinline__ float sum_four(float x0, float x1, float x2, float x3, int lane) {
    const bool odd = lane & 1, high = lane & 2;
    float p = (odd ? x1 : x0) + __shfl_xor_sync(~0u, odd ? x0 : x1, 1);
    float q = (odd ? x3 : x2) + __shfl_xor_sync(~0u, odd ? x2 : x3, 1);
    float sum = (high ? q : p) + __shfl_xor_sync(~0u, high ? p : q, 2);
#pragma unroll
    for (int m = 4; m < LANES_C; m *= 2) sum += __shfl_xor_sync(~0u, sum, m);
    return sum;
}

// The operands of a chunk, to shared memory. Steps from T on become identity steps, which have no effect. Not unrolled
// and with a late thread number, here and in store_steps, so that addresses don't take registers from the steps.
__device__ __forceinline__ void load_chunk(float* operands, const elem* r, const elem* w, const elem* k, const elem* v,
                                           const elem* a, const elem* b, const float* saved_sa, const elem* dy,
                                           int head, int row0, i64 at, i64 t0, i64 T, i64 H) {
#pragma unroll 1
    for (int i = late(threadIdx.x); i < CHUNK * N; i += BWD_THREADS) {
        const bool inside = t0 + i / N < T;
        const i64 from = at + (t0 + i / N) * H * N + i % N;
        float* to = operands + i / N * OPERANDS + i % N;
        to[0] = inside ? widen(r[from]) : 0;
        to[N] = inside ? expf(-expf(widen(w[from]))) : 1;
        to[2 * N] = inside ? widen(k[from]) : 0;
        to[3 * N] = inside ? widen(b[from]) : 0;
        to[4 * N] = inside ? widen(a[from]) : 0;
    }
#pragma unroll 1
    for (int i = late(threadIdx.x); i < CHUNK * R; i += BWD_THREADS) {
        const bool inside = t0 + i / R < T;
        const i64 from = at + (t0 + i / R) * H * N + row0 + i % R;
        float* to = operands + i / R * OPERANDS + 5 * N + i % R;
        to[0] = inside ? widen(v[from]) : 0;
        to[R] = inside ? widen(dy[from]) : 0;
        to[2 * R] = inside ? saved_sa[((i64)head * T + t0 + i / R) * N + row0 + i % R] : 0;
    }
}

// The states before each of SUB steps from `first` on, in columns, from the chunk's checkpoint; and dr of these steps.
__device__ __forceinline__ void replay(float (&before)[SUB][E], const float* start, const float* operands, int first,
                                       float* results, int key, int lane) {
    float S[E];
#pragma unroll
    for (int e = 0; e < E; e++) S[e] = start[place<LANES_C>(lane, e) * N + key];
#pragma unroll 1
    for (int i = 0; i < first; i++) advance(S, operands + i * OPERANDS, key, lane);
#pragma unroll
    for (int j = 0; j < SUB; j++) {
        const float* x = operands + (first + j) * OPERANDS;
#pragma unroll
        for (int e = 0; e < E; e++) before[j][e] = S[e];
        advance(S, x, key, lane);
        float DY[E], sum = 0;
        take<LANES_C>(DY, x + 5 * N + R, lane);
#pragma unroll
        for (int e = 0; e < E; e++) sum += DY[e] * S[e];
        sum = sum_over<LANES_C>(sum);
        if (lane == 0) results[j * RESULTS + 4 * PITCH + key] = sum;
    }
}

// Rows: dS takes in dy_t r_t^T, gives dv and dsa, and goes to step t - 1.
__device__ __forceinline__ void rows_step(float (&dS)[E], const float* x, float* out, float* dsa_of, int row,
                                          int lane) {
    float X[E], Y[E], dv = 0, dsa = 0;
    const float dy = x[5 * N + R + row];
    take<LANES_R>(X, x, lane);
#pragma unroll
    for (int e = 0; e < E; e++) dS[e] += dy * X[e];
    take<LANES_R>(X, x + 2 * N, lane);
    take<LANES_R>(Y, x + 3 * N, lane);
#pragma unroll
    for (int e = 0; e < E; e++) dv += dS[e] * X[e], dsa += dS[e] * Y[e];
    dv = sum_over<LANES_R>(dv);
    dsa = sum_over<LANES_R>(dsa);
    if (lane == 0) out[5 * PITCH + row] = dv, dsa_of[row] = dsa;
    take<LANES_R>(X, x + N, lane);
    take<LANES_R>(Y, x + 4 * N, lane);
#pragma unroll
    for (int e = 0; e < E; e++) dS[e] = dS[e] * X[e] + dsa * Y[e];
}

// Columns: the same for dC, which gives the sums over values. Waits for dsa_of, which all threads fill in rows_step.
__device__ __forceinline__ void columns_step(float (&dC)[E], const float (&before)[E], const float* x, float* out,
                                             const float* dsa_of, int key, int lane) {
    float X[E], Y[E], dk = 0, db = 0, dd = 0, da = 0;
    const float r = x[key], d = x[N + key], a = x[4 * N + key];
    take<LANES_C>(X, x + 5 * N + R, lane);
#pragma unroll
    for (int e = 0; e < E; e++) dC[e] += X[e] * r;
    take<LANES_C>(X, x + 5 * N, lane);
    take<LANES_C>(Y, x + 5 * N + 2 * R, lane);
#pragma unroll
    for (int e = 0; e < E; e++) dk += dC[e] * X[e], db += dC[e] * Y[e], dd += dC[e] * before[e];
    __syncthreads();
    take<LANES_C>(X, dsa_of, lane);
#pragma unroll
    for (int e = 0; e < E; e++) {
        da += X[e] * before[e];
        dC[e] = dC[e] * d + X[e] * a;
    }
    const float sum = sum_four(dk, db, dd, da, lane);
    if (lane < 4) out[lane * PITCH + key] = sum;
}

// Gradients of SUB steps from t0 + first on, from shared memory.
__device__ __forceinline__ void store_steps(const float* results, const elem* w, elem* dr, elem* dw, elem* dk, elem* dv,
                                            elem* da, elem* db, float* parts, i64 count, int row0, i64 at, i64 t0,
                                            int first, i64 T, i64 H) {
#pragma unroll 1
    for (int i = late(threadIdx.x); i < SUB * N; i += BWD_THREADS) {
        const i64 t = t0 + late(first) + i / N;
        if (t >= T) continue;
        const i64 to = at + t * H * N + i % N;
        const float* x = results + i / N * RESULTS + i % N;
        const float e = expf(widen(w[to])), d = expf(-e);
        const float dw_i = d > 0 ? -e * d * x[2 * PITCH] : 0;  // where e overflows, d is 0 and so is the limit
        if (R == N) {
            put(dr + to, x[4 * PITCH]);
            put(dw + to, dw_i);
            put(dk + to, x[0]);
            put(da + to, x[3 * PITCH]);
            put(db + to, x[PITCH]);
        } else {
            float* part = parts + (i64)(row0 / R * 5) * count + to;
            part[0] = x[4 * PITCH];
            part[count] = dw_i;
            part[2 * count] = x[0];
            part[3 * count] = x[3 * PITCH];
            part[4 * count] = x[PITCH];
        }
    }
#pragma unroll 1
    for (int i = late(threadIdx.x); i < SUB * R; i += BWD_THREADS) {
        const i64 t = t0 + late(first) + i / R;
        if (t < T) put(dv + at + t * H * N + row0 + i % R, results[i / R * RESULTS + 5 * PITCH + i % R]);
    }
}

extern "C" __global__ void __launch_bounds__(BWD_THREADS, 512 / BWD_THREADS)
    wkv7_backward(const elem* __restrict__ r, const elem* __restrict__ w, const elem* __restrict__ k,
                  const elem* __restrict__ v, const elem* __restrict__ a, const elem* __restrict__ b,
                  const float* __restrict__ checkpoints, const float* __restrict__ saved_sa,
                  const elem* __restrict__ dy, const float* __restrict__ dsT, elem* __restrict__ dr,
                  elem* __restrict__ dw, elem* __restrict__ dk, elem* __restrict__ dv, elem* __restrict__ da,
                  elem* __restrict__ db, float* __restrict__ ds0, float* __restrict__ parts, i64 count, i64 T, i64 H) {
    DYNAMIC_SHARED(float, operands);                     // (CHUNK, OPERANDS)
    float* const results = operands + CHUNK * OPERANDS;  // (SUB, RESULTS)
    float* const dsa_of = results + SUB * RESULTS;       // (2, R), in turns
    const int tid = threadIdx.x;
    const int row = tid / LANES_R, lane_r = tid % LANES_R, key = tid / LANES_C, lane_c = tid % LANES_C;
    const int head = blockIdx.x / (N / R), row0 = blockIdx.x % (N / R) * R;
    const int chunks = (T + CHUNK - 1) / CHUNK;
    const i64 at = first_row(head, T, H), state = ((i64)head * N + row0) * N;

    float dS[E] = {}, dC[E] = {};  // gradient of the state: of (row, keys), and of (rows, key)
    if (dsT) {
        take<LANES_R>(dS, dsT + state + row * N, lane_r);
#pragma unroll
        for (int e = 0; e < E; e++) dC[e] = dsT[state + place<LANES_C>(lane_c, e) * N + key];
    }
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        const i64 t0 = (i64)chunk * CHUNK;
        load_chunk(operands, r, w, k, v, a, b, saved_sa, dy, head, row0, at, t0, T, H);
        __syncthreads();
#pragma unroll 1
        for (int first = CHUNK - SUB; first >= 0; first -= SUB) {
            if (t0 + first >= T) continue;
            float before[SUB][E];
            const float* start = checkpoints + (((i64)late(head) * chunks + chunk) * N + row0) * N;
            replay(before, start, operands, first, results, key, lane_c);
#pragma unroll
            for (int j = SUB - 1; j >= 0; j--) {
                const float* x = operands + (first + j) * OPERANDS;
                rows_step(dS, x, results + j * RESULTS, dsa_of + j % 2 * R, row, lane_r);
                columns_step(dC, before[j], x, results + j * RESULTS, dsa_of + j % 2 * R, key, lane_c);
            }
            __syncthreads();
            store_steps(results, w, dr, dw, dk, dv, da, db, parts, count, row0, at, t0, first, T, H);
            __syncthreads();
        }
    }
    give<LANES_R>(ds0 + state + row * N, dS, lane_r);
}

// The sum over splits of parts (splits, 5, count).
extern "C" __global__ void __launch_bounds__(256)
    wkv7_add_parts(const float* __restrict__ parts, elem* __restrict__ dr, elem* __restrict__ dw,
                   elem* __restrict__ dk, elem* __restrict__ da, elem* __restrict__ db, i64 count) {
    const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    elem* const out[5] = {dr, dw, dk, da, db};
#pragma unroll
    for (int m = 0; m < 5; m++) {
        float sum = 0;
        for (int s = 0; s < N / BWD_ROWS; s++) sum += parts[(s * 5 + m) * count + i];
        put(out[m] + i, sum);
    }
}
