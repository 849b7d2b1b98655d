/* K2: which of the compiled variants of a kernel this machine can run. One level for all kernels of the process. */
#ifndef PC_SIMD_H
#define PC_SIMD_H

/* Variants for x86 are compiled where the compiler can target single functions; elsewhere only the portable one is. */
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define PC_SIMD_X86 1
#else
#define PC_SIMD_X86 0
#endif

/* The features of each level, as the compiler's target attribute writes them. */
#define PC_SIMD_TARGET_AVX2 "avx2"
#define PC_SIMD_TARGET_AVX512 "avx2,avx512f,avx512bw,avx512vl,avx512dq"

#define PC_SIMD_PORTABLE 0
#define PC_SIMD_AVX2 1
#define PC_SIMD_AVX512 2

/* The level in force: the best that the machine has, unless it was lowered. */
int pc_simd_level(void);
/* For tests. A level above the machine's, or a negative one, means the machine's best. Returns the level in force. */
int pc_simd_force_level(int level);

#endif
