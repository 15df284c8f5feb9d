/* SHA-512 with AVX2, and with the non-destructive rotation of BMI2: one and four messages. An
 * extend takes 627 cycles, four take 1453 (a Sapphire Rapids guest); in portable C one takes
 * 860. */
#include "ak_sha512.h"

#if AK_X86_64
#include <immintrin.h>

/* See sha512_avx512.c. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2")
#pragma GCC optimize("no-tree-reassoc", "no-tree-vectorize")
#endif

#define NAME(x) x##_1
#define WORD uint64_t
#define VECTOR_ROR(x, n) _mm_or_si128(_mm_srli_epi64(x, n), _mm_slli_epi64(x, 64 - (n)))
#define VECTOR_XOR3(x, y, z) _mm_xor_si128(_mm_xor_si128(x, y), z)
#include "sha512_pairs.inc"
#include "sha512_rounds.inc"

#include "sha512_four.inc"
#define IN_ORDER(x)
#include "sha512_rounds.inc"

#ifdef __clang__
#pragma clang attribute pop
#endif

#define NEEDS (AK_CPU_AVX2 | AK_CPU_BMI2)

const ak_sha512_impl ak_sha512_avx2 = {
    .name = "avx2",
    .needs = NEEDS,
    .lanes = 1,
    .least = 1,
    .block = block_1,
    .extend = extend_1,
};

/* A vector rotation takes three instructions: four lanes take as long as 2.3 single messages, or
 * 3.1 on Zen 4. */
const ak_sha512_impl ak_sha512_avx2_x4 = {
    .name = "avx2 x4",
    .needs = NEEDS,
    .lanes = 4,
    .least = 3,
    .block = block_4,
    .extend = extend_4,
};
#endif
