// CUDA kernels on a CPU: enough of the language to compile a .cu file with g++ and to run it exactly.
//
// One block runs at a time and each of its threads is a fiber, so barriers, shuffles, shared memory and matrix
// instructions do what they do on a GPU, in a reproducible order. What would be undefined there is an error here: a
// barrier that not all threads reach or that they reach at different places, a write past dynamic shared memory, a
// misaligned vector access by the functions below. Shared memory starts as NaN (every bit set) in each block.
// Running the threads in descending order as well shows most missing barriers, as a different result.
//
// Not seen: races that both orders hide, speed, occupancy. Only whole warps take part in warp operations.
// Needs glibc or a BSD (ucontext). Compiled and called by cuda_host.py.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// ---- the language

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(T, name) T* const name = (T*)host::dynamic_shared()

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
using std::max;
using std::min;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // set by the scheduler whenever it resumes a thread

extern char shared_begin[] __asm__("__start_cuda_shared") __attribute__((weak));  // the linker's names for the section
extern char shared_end[] __asm__("__stop_cuda_shared") __attribute__((weak));

// ---- threads of a block as fibers

namespace host {

constexpr int WARP = 32, STACK = 1 << 17, GUARD = 4096;
enum Wait { RUNNING, AT_BLOCK, AT_WARP, ENDED };

struct Copy {
    void* to;
    const void* from;
    bool committed_end;  // the last of a group
};

struct Thread {
    std::vector<char> stack;
    ucontext_t start;  // used once; switching by setjmp afterwards costs no system calls
    jmp_buf here;
    bool started;
    dim3 index;
    Wait wait;
    const char* file;
    int line;       // of the barrier that it waits at
    int exchanges;  // collectives done, for the choice of a mailbox
    std::vector<Copy> copies;
};

inline std::vector<Thread> threads;
inline int current, count;
inline ucontext_t scheduler_start;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::vector<char> shared;
inline size_t shared_bytes;
inline std::string error;
inline u32 mail[1024][2][8];  // two mailboxes a thread, in turns, so that one barrier a collective is enough

inline Thread& self() { return threads[current]; }

inline void* dynamic_shared() {
    auto at = (uintptr_t)shared.data();
    return (void*)((at + 127) / 128 * 128);
}

inline std::string place(const Thread& t) {
    const char* slash = strrchr(t.file, '/');
    return std::string(slash ? slash + 1 : t.file) + ":" + std::to_string(t.line);
}

// Leave the thread for the scheduler; comes back when every thread of its block or warp has come as far.
inline void pause(Wait wait, const char* file, int line) {
    self().wait = wait, self().file = file, self().line = line;
    if (!_setjmp(self().here)) _longjmp(scheduler, 1);
}

// The first error of a launch counts.
inline bool report(const std::string& what) {
    if (error.empty())
        error = what + " (block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
                std::to_string(blockIdx.z) + ", thread " + std::to_string(current) + ")";
    return false;
}

// An error in a running thread ends the launch.
[[noreturn]] inline void fail(const std::string& what) {
    report(what);
    _longjmp(scheduler, 1);
}

inline void entry() {
    body();
    self().wait = ENDED;
    _longjmp(scheduler, 1);
}

// Run thread i until it waits or ends.
inline void resume(int i) {
    current = i;
    threadIdx = threads[i].index;
    if (_setjmp(scheduler)) return;
    if (threads[i].started) _longjmp(threads[i].here, 1);
    threads[i].started = true;
    swapcontext(&scheduler_start, &threads[i].start);
}

// Let threads [from, to), a warp or a block, go on from their barrier -> whether all of them had come to it.
inline bool release(int from, int to, Wait kind) {
    int waiting = 0, ended = 0;
    for (int i = from; i < to; i++) {
        waiting += threads[i].wait == kind;
        ended += threads[i].wait == ENDED;
        if (threads[i].wait == kind) current = i;
    }
    if (waiting + ended < to - from || waiting == 0) return false;
    const Thread& one = threads[current];
    if (ended)
        return report("divergent barrier: " + std::to_string(ended) + " threads ended, others wait at " + place(one));
    for (int i = from; i < to; i++)
        if (threads[i].line != one.line || strcmp(threads[i].file, one.file))
            return report("divergent barrier: threads wait at " + place(threads[i]) + " and " + place(one));
    for (int i = from; i < to; i++) threads[i].wait = RUNNING;
    return true;
}

inline void prepare_block() {
    memset(dynamic_shared(), 0xff, shared_bytes);
    memset((char*)dynamic_shared() + shared_bytes, 0x5a, GUARD);
    if (shared_begin) memset(shared_begin, 0xff, shared_end - shared_begin);
    for (int i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.started = false, t.wait = RUNNING, t.exchanges = 0;
        t.copies.clear();
        t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        t.stack.resize(STACK);
        getcontext(&t.start);
        t.start.uc_stack.ss_sp = t.stack.data();
        t.start.uc_stack.ss_size = STACK;
        t.start.uc_link = nullptr;
        makecontext(&t.start, entry, 0);
    }
}

// Run the threads of a warp as far as they get without other warps.
inline void run_warp(int first, bool descending) {
    do {
        for (int n = 0; n < WARP && error.empty(); n++) {
            int i = first + (descending ? WARP - 1 - n : n);
            if (threads[i].wait == RUNNING) resume(i);
        }
    } while (error.empty() && release(first, first + WARP, AT_WARP));
}

inline void run_block(bool descending) {
    prepare_block();
    do {
        for (int n = 0; n < count && error.empty(); n += WARP) run_warp(descending ? count - WARP - n : n, descending);
    } while (error.empty() && release(0, count, AT_BLOCK));
    for (int i = 0; i < count; i++) {
        if (threads[i].wait == ENDED) continue;
        current = i;
        report("divergent barrier: some threads wait for their block, others for their warp, at " + place(threads[i]));
    }
    for (int i = 0; i < GUARD; i++)
        if (((char*)dynamic_shared())[shared_bytes + i] != 0x5a) report("write past dynamic shared memory");
}

inline const char* launch(const unsigned* sizes, size_t bytes, bool descending, std::function<void()> kernel) {
    gridDim = {sizes[0], sizes[1], sizes[2]}, blockDim = {sizes[3], sizes[4], sizes[5]};
    body = kernel, shared_bytes = bytes, error.clear();
    shared.resize(bytes + GUARD + 128);
    count = blockDim.x * blockDim.y * blockDim.z;
    if (count % WARP || count > 1024 || count == 0) return "a block must be 1 to 32 whole warps";
    if ((int)threads.size() < count) threads.resize(count);
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x && error.empty(); x++) {
                blockIdx = {x, y, z};
                run_block(descending);
            }
    return error.empty() ? nullptr : error.c_str();
}

template <class... P, size_t... i>
const char* call(void (*kernel)(P...), void** args, const unsigned* sizes, size_t bytes, bool descending,
                 std::index_sequence<i...>) {
    return launch(sizes, bytes, descending, [=] { kernel(*(P*)args[i]...); });
}
template <class... P>
const char* call(void (*kernel)(P...), void** args, const unsigned* sizes, size_t bytes, bool descending) {
    return call(kernel, args, sizes, bytes, descending, std::index_sequence_for<P...>{});
}

// Give every thread of the warp sight of `words` of each -> the warp's mail, by lane: [lane * 2][word].
inline const u32 (*exchange(const void* value, size_t bytes, const char* file, int line))[8] {
    int box = self().exchanges++ % 2;
    memcpy(mail[current][box], value, bytes);
    pause(AT_WARP, file, line);
    return &mail[current / WARP * WARP][box];
}

template <class T>
T shuffle(T value, int lane, const char* file, int line) {
    static_assert(sizeof(T) <= 8);
    T out;
    memcpy(&out, exchange(&value, sizeof value, file, line)[lane * 2], sizeof out);
    return out;
}

inline int lane() { return current % WARP; }

inline void need_full(unsigned mask) {
    if (mask != ~0u) fail("only whole warps are supported in warp operations");
}
inline void need_aligned(const void* p) {
    if ((uintptr_t)p % 16) fail("an address is not a multiple of 16 bytes");
}

}  // namespace host

#define KERNEL_ON_HOST(name)                                                                                       \
    extern "C" __attribute__((visibility("default"))) const char* host_##name(void** args, const unsigned* sizes, \
                                                                              size_t bytes, bool descending) {    \
        return host::call(name, args, sizes, bytes, descending);                                                  \
    }

// ---- built-in functions. The trailing arguments are the caller's place, for messages.

#define PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(PLACE) { host::pause(host::AT_BLOCK, file, line); }
inline void __syncwarp(unsigned mask = ~0u, PLACE) {
    host::need_full(mask);
    host::pause(host::AT_WARP, file, line);
}
template <class T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32, PLACE) {
    host::need_full(mask);
    return host::shuffle(x, host::lane() / width * width + from % width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, PLACE) {
    host::need_full(mask);
    int from = host::lane() ^ bits;
    return host::shuffle(x, from / width <= host::lane() / width ? from : host::lane(), file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, int by, int width = 32, PLACE) {
    host::need_full(mask);
    return host::shuffle(x, host::lane() + (host::lane() % width + by < width ? by : 0), file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, int by, int width = 32, PLACE) {
    host::need_full(mask);
    return host::shuffle(x, host::lane() - (host::lane() % width >= by ? by : 0), file, line);
}

inline float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
inline u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }

// ---- device.cuh's functions

inline int late(int x) { return x; }
inline float from_bf16(u16 x) { return __uint_as_float((u32)x << 16); }
inline u16 to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 pack_bf16(float low, float high) { return (u32)to_bf16(high) << 16 | to_bf16(low); }

inline void mma16816(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], PLACE) {
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto warp = host::exchange(mine, sizeof mine, file, line);
    // by the definition in the PTX ISA: which lane and register hold A[i][k] and B[k][j]
    auto half = [](u32 pair, int k) { return from_bf16(pair >> 16 * (k & 1)); };
    auto A = [&](int i, int k) { return half(warp[(i % 8 * 4 + k % 8 / 2) * 2][i / 8 + k / 8 * 2], k); };
    auto B = [&](int k, int j) { return half(warp[(j * 4 + k % 8 / 2) * 2][4 + k / 8], k); };
    for (int n = 0; n < 4; n++) {
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += A(host::lane() / 4 + n / 2 * 8, k) * B(k, host::lane() % 4 * 2 + n % 2);
        c[n] += sum;
    }
}

inline void load_matrices(u32 (&x)[4], const u16* row, PLACE) {
    host::need_aligned(row);
    auto warp = host::exchange(row, 16, file, line);  // the rows themselves: 8 bf16 in 4 words
    for (int m = 0; m < 4; m++) x[m] = warp[(m * 8 + host::lane() / 4) * 2][host::lane() % 4];
}
inline void load_matrices_transposed(u32 (&x)[4], const u16* row, PLACE) {
    host::need_aligned(row);
    auto warp = host::exchange(row, 16, file, line);
    int column = host::lane() / 4, first = host::lane() % 4 * 2;
    auto at = [&](int m, int i) { return warp[(m * 8 + i) * 2][column / 2] >> 16 * (column & 1) & 0xffff; };
    for (int m = 0; m < 4; m++) x[m] = at(m, first) | at(m, first + 1) << 16;
}

// Done as late as allowed, when waited for, so that a missing wait shows.
inline void copy_async(void* to_shared, const void* from_global) {
    host::need_aligned(to_shared);
    host::need_aligned(from_global);
    host::self().copies.push_back({to_shared, from_global, false});
}
inline void copy_commit() { host::self().copies.push_back({nullptr, nullptr, true}); }
template <int n>
void copy_wait() {
    auto& copies = host::self().copies;
    auto is_end = [](const host::Copy& c) { return c.committed_end; };
    int groups = std::count_if(copies.begin(), copies.end(), is_end) - n;
    while (groups > 0) {
        auto end = std::find_if(copies.begin(), copies.end(), is_end);
        for (auto c = copies.begin(); c != end; ++c) memcpy(c->to, c->from, 16);
        copies.erase(copies.begin(), end + 1);
        groups--;
    }
}
