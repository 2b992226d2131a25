// The few things that CUDA C++ spells in PTX, one thin function each.
//
// No header is included, so NVRTC needs none. Every function here has a twin with the same meaning in
// tests/cuda_host.h, through which g++ compiles the same kernels for a CPU; kernels use nothing that has no twin.
#pragma once

#ifdef __CUDACC__

typedef unsigned short u16;  // a bf16 is carried as its bits
typedef unsigned int u32;
typedef long long i64;

// The block's dynamic shared memory, at least 16-byte aligned, as an array of T.
#define DYNAMIC_SHARED(T, name)                                         \
    extern __shared__ __align__(16) unsigned char dynamic_shared_raw[]; \
    T* const name = (T*)dynamic_shared_raw

// x, but the compiler can't tell: what is computed from it is computed where it stands, instead of before the loops
// around it and kept in registers all along.
__device__ __forceinline__ int late(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

__device__ __forceinline__ float from_bf16(u16 x) { return __uint_as_float((u32)x << 16); }

// To nearest, ties to even.
__device__ __forceinline__ u16 to_bf16(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// Two of them in one register, `low` at the lower address when stored.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// c (16 x 8, fp32) += a (16 x 16, bf16, row-major fragments) times b (16 x 8, bf16, column-major fragments), by a
// whole warp. With g = lane / 4 and q = lane % 4 * 2, in pairs of adjacent elements (the first in the low half):
//   a[0] = A[g][q], a[1] = A[g + 8][q], a[2] = A[g][q + 8], a[3] = A[g + 8][q + 8]
//   b[0] = B[q, q + 1][g], b[1] = B[q + 8, q + 9][g]
//   c[0], c[1] = C[g][q, q + 1],  c[2], c[3] = C[g + 8][q, q + 1]
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
__device__ __forceinline__ void mma16816(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 bf16 matrices from shared memory, one a register: lane i points to row i % 8 (16 bytes, aligned) of
// matrix i / 8, and receives elements (lane / 4, lane % 4 * 2 and + 1) of each. `_transposed`: of each transposed.
__device__ __forceinline__ void load_matrices(u32 (&x)[4], const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&x)[4], const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// Copy 16 aligned bytes from global to shared memory without waiting. The copies made since the last commit form a
// group; copy_wait<n>() returns when at most n of this thread's groups are still under way. A barrier must follow
// before another thread reads them.
__device__ __forceinline__ void copy_async(void* to_shared, const void* from_global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to_shared)),
                 "l"(from_global)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

#endif
