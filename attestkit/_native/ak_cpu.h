/* CPU features that kernels ask for before they use them. */
#ifndef AK_CPU_H
#define AK_CPU_H

#include <stdbool.h>

#include "ak.h"

/* Whether the files for instruction sets of x86-64 have anything in them: they ask for theirs with
 * pragmas and attributes of gcc and clang. */
#if defined(__x86_64__) && defined(__GNUC__)
#define AK_X86_64 1
#else
#define AK_X86_64 0
#endif

#define AK_ALWAYS_INLINE __attribute__((always_inline))

/* The SHA extensions of x86-64, with the SSSE3 and SSE4.1 their code needs. */
#define AK_CPU_SHA_NI 1U
/* Rotations that leave the flags and their source alone. */
#define AK_CPU_BMI2 2U
/* 256-bit integers, in registers that the operating system saves. */
#define AK_CPU_AVX2 4U
/* F, BW, DQ and VL: masks, and 64-bit rotations and three-way logic in every width; the operating
 * system saves the 512-bit and the mask registers. */
#define AK_CPU_AVX512 8U
/* Bytes picked from a whole 512-bit register; never without AK_CPU_AVX512. */
#define AK_CPU_VBMI 16U

#endif
