// What the C++ of this directory shares: SIMD, rows of fp32 or bf16, exp, and threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// ---- SIMD: vf is a register of W floats

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

#if defined(__GNUC__)  // GCC and Clang
typedef float vf __attribute__((vector_size(W * 4)));
static inline vf set1(float x) { return x - vf{}; }
#else  // other compilers vectorise these loops themselves
struct vf { float x[W]; };
static inline vf set1(float x) { vf r; for (int i = 0; i < W; i++) r.x[i] = x; return r; }
static inline vf operator+(vf a, vf b) { for (int i = 0; i < W; i++) a.x[i] += b.x[i]; return a; }
static inline vf operator*(vf a, vf b) { for (int i = 0; i < W; i++) a.x[i] *= b.x[i]; return a; }
static inline vf& operator+=(vf& a, vf b) { return a = a + b; }
#endif

static inline vf load(const float* p) { vf r; std::memcpy(&r, p, sizeof r); return r; }
static inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAVE_SHUFFLE 1
#endif
#endif

#ifdef HAVE_SHUFFLE
// x and y hold W/w blocks of w lanes. Halve every block by adding its halves; x's blocks come first, then y's.
template <int w, std::size_t... i>
static inline vf halve(vf x, vf y, std::index_sequence<i...>) {
    constexpr auto at = [](int p, int half) {
        int q = p % (W / 2);
        return (p < W / 2 ? 0 : W) + q / (w / 2) * w + q % (w / 2) + half * (w / 2);
    };
    return __builtin_shufflevector(x, y, at(i, 0)...) + __builtin_shufflevector(x, y, at(i, 1)...);
}
// Lane j of the result is the sum over the lanes of rows[j], j < W.
template <int rows_left, int w>
static inline vf sum_lanes(const float* rows) {
    if constexpr (rows_left == 1) {
        return load(rows);
    } else {
        vf x = sum_lanes<rows_left / 2, w * 2>(rows), y = sum_lanes<rows_left / 2, w * 2>(rows + rows_left / 2 * W);
        return halve<w * 2>(x, y, std::make_index_sequence<W>{});
    }
}
static inline vf sum_rows(const float* rows) { return sum_lanes<W, 1>(rows); }
#else
static inline vf sum_rows(const float* rows) {
    float out[W] = {};
    for (int j = 0; j < W; j++)
        for (int i = 0; i < W; i++) out[j] += rows[j * W + i];
    return load(out);
}
#endif

// ---- rows: fp32 (dtype 0) or bf16 (dtype 1) in memory, fp32 in registers

static inline int size_of(int dtype) { return dtype == 0 ? 4 : 2; }

// out[0..n) = p[at..at+n)
static inline void read_row(int dtype, const void* p, std::int64_t at, int n, float* out) {
    if (dtype == 0) {
        std::memcpy(out, (const float*)p + at, n * sizeof(float));
    } else {
        const std::uint16_t* q = (const std::uint16_t*)p + at;
        for (int i = 0; i < n; i++) {
            std::uint32_t bits = (std::uint32_t)q[i] << 16;
            std::memcpy(out + i, &bits, 4);
        }
    }
}

static inline void write_row(int dtype, void* p, std::int64_t at, int n, const float* x) {
    if (dtype == 0) {
        std::memcpy((float*)p + at, x, n * sizeof(float));
    } else {
        std::uint16_t* q = (std::uint16_t*)p + at;
        for (int i = 0; i < n; i++) {
            std::uint32_t bits;
            std::memcpy(&bits, x + i, 4);
            std::uint32_t even = bits + 0x7fff + ((bits >> 16) & 1);  // round to nearest, ties to even
            q[i] = (std::uint16_t)((x[i] != x[i] ? bits | 0x400000 : even) >> 16);
        }
    }
}

// exp for rows: no branch and no library call, so that compilers vectorise a loop over it; error about 1 ulp.
static inline float exp_row(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // round to nearest: 1.5 * 2^23 has no fraction bits
    float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;    // ln 2 in two parts
    float p = 1.9875691500e-4f;  // the classic Cephes polynomial for exp on |f| <= ln(2)/2
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    std::int32_t bits = ((std::int32_t)n + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// ---- threads

// Run work() on n threads, this one among them.
template <class F>
static void on_threads(int n, F work) {
#ifdef _OPENMP  // torch's own threads: they spin for a while after its operators, and would be in the way of others
#pragma omp parallel num_threads(n)
    work();
#else
    std::vector<std::thread> pool;
    for (int i = 1; i < n; i++) {
        try {
            pool.emplace_back(work);
        } catch (...) {
            break;  // no more threads to be had: those there are do all the work
        }
    }
    work();
    for (auto& t : pool) t.join();
#endif
}

// Run f(worker, task) for all tasks; each thread owns one Worker, zero at first. False if memory ran out.
template <class Worker, class F>
static bool for_each_task(std::int64_t tasks, int threads, F f) {
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> ok{true};
    on_threads((int)std::min<std::int64_t>(threads, tasks), [&] {
        void* memory = ::operator new(sizeof(Worker), std::align_val_t(64), std::nothrow);
        if (!memory) {
            ok = false;
            return;
        }
        std::memset(memory, 0, sizeof(Worker));  // padding is zero, and no step changes that
        for (std::int64_t i; (i = next++) < tasks;) f(*(Worker*)memory, i);
        ::operator delete(memory, std::align_val_t(64));
    });
    return ok;
}
