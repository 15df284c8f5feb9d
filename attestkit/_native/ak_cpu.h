/* CPU features that the code for instruction set extensions requires. */
#ifndef AK_CPU_H
#define AK_CPU_H

#include <stdbool.h>

#include "ak.h"

/* Whether the code for x86-64 extensions is compiled: it uses pragmas and attributes of gcc and
 * clang. */
#if defined(__x86_64__) && defined(__GNUC__)
#define AK_X86_64 1
#else
#define AK_X86_64 0
#endif

#define AK_ALWAYS_INLINE __attribute__((always_inline))

/* The SHA extensions of x86-64, with SSSE3 and SSE4.1. */
#define AK_CPU_SHA_NI 1U
/* Rotations that do not change the flags or the source operand. */
#define AK_CPU_BMI2 2U
/* 256-bit integers; the operating system saves the registers. */
#define AK_CPU_AVX2 4U
/* F, BW, DQ and VL: masks, 64-bit rotations and ternary logic in all widths; the operating system
 * saves the 512-bit and the mask registers. */
#define AK_CPU_AVX512 8U
/* VBMI: byte permutations of a 512-bit register; only together with AK_CPU_AVX512. */
#define AK_CPU_VBMI 16U

#endif
