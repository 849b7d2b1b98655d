/*
 * Detection of the SIMD level, once per process and from any thread: racing first callers find the same answer, so the
 * variable needs to be atomic but not locked. Kernels give the same bits at every level; a change while others compute
 * is therefore harmless.
 */
#include "math/simd.h"

#include <stdatomic.h>

#define LEVEL_UNKNOWN (-1)

static atomic_int level_in_force = LEVEL_UNKNOWN;

static int detect(void) {
#if PC_SIMD_X86
    /* The builtin answers yes only when the operating system saves the wide registers too. */
    if (!__builtin_cpu_supports("avx2")) return PC_SIMD_PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return PC_SIMD_AVX512;
    return PC_SIMD_AVX2;
#else
    return PC_SIMD_PORTABLE;
#endif
}

int pc_simd_level(void) {
    int level = atomic_load_explicit(&level_in_force, memory_order_relaxed);
    return level == LEVEL_UNKNOWN ? pc_simd_force_level(LEVEL_UNKNOWN) : level;
}

int pc_simd_force_level(int level) {
    int best = detect();
    int chosen = level < 0 || level > best ? best : level;
    atomic_store_explicit(&level_in_force, chosen, memory_order_relaxed);
    return chosen;
}
