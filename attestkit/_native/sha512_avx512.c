/* SHA-512 with AVX-512, which has rotations and ternary logic as single instructions: one, four and
 * eight messages.
 *
 * Time of an extend on a Sapphire Rapids guest at 4.1 GHz (gcc 12 and 14; with clang 19, four and
 * eight lanes take 2 % longer, one message 10 %), and the theoretical minimum:
 *
 *   one message    571 cycles, 140 ns    dependency chain of five cycles per round: 400
 *   four lanes     730 cycles, 45 ns     2064 operations, three ports for 256 bits: 688
 *   eight lanes   1064 cycles, 32.5 ns   2064 operations, two ports for 512 bits: 1032
 *
 * Eight lanes as two interleaved halves of 256 bits took 1421 cycles. Precomputing the constant
 * padding of 96 bytes and the initial state would save 2.5 % of the operations. */
#include "ak_sha512.h"

#if AK_X86_64
#include <immintrin.h>

/* gcc would reassociate additions (2 to 3 % slower), and copy words in vectors of another width
 * than they are read with (3 % slower). */
#ifdef __clang__
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2,avx512f,avx512bw,avx512dq,avx512vl")
#pragma GCC optimize("no-tree-reassoc", "no-tree-vectorize")
#endif

/* One message. */
#define NAME(x) x##_1
#define WORD uint64_t
#define VECTOR_ROR(x, n) _mm_ror_epi64(x, n)
#define VECTOR_XOR3(x, y, z) _mm_ternarylogic_epi64(x, y, z, 0x96)
#include "sha512_pairs.inc"
#include "sha512_rounds.inc"

#include "sha512_four.inc"
#define ROR(x, n) ((four)_mm256_ror_epi64((__m256i)(x), n))
#define TERNARY(x, y, z, table)                                                                    \
    ((four)_mm256_ternarylogic_epi64((__m256i)(x), (__m256i)(y), (__m256i)(z), table))
#define XOR3(x, y, z) TERNARY(x, y, z, 0x96)
#define CHOOSE(x, y, z) TERNARY(x, y, z, 0xca)
#define MAJORITY(x, y, z) TERNARY(x, y, z, 0xe8)
#define IN_ORDER(x)
#include "sha512_rounds.inc"
#undef TERNARY

/* Eight messages. */
typedef uint64_t eight __attribute__((vector_size(64), may_alias));

/* The 16 bytes at p[0], p[2], p[4] and p[6]. */
static inline AK_ALWAYS_INLINE __m512i load_every_other(const uint8_t *const *p, size_t at)
{
    const __m512i one = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(p[0] + at)));
    const __m512i two = _mm512_inserti64x2(one, _mm_loadu_si128((const __m128i *)(p[2] + at)), 1);
    const __m512i three = _mm512_inserti64x2(two, _mm_loadu_si128((const __m128i *)(p[4] + at)), 2);
    return _mm512_inserti64x2(three, _mm_loadu_si128((const __m128i *)(p[6] + at)), 3);
}

static inline AK_ALWAYS_INLINE void load_eight(__m512i pair[2], const uint8_t *const *p, size_t at)
{
    const __m512i swap =
        _mm512_broadcast_i32x4(_mm_set_epi64x(0x08090a0b0c0d0e0f, 0x0001020304050607));
    const __m512i even = load_every_other(p, at), odd = load_every_other(p + 1, at);
    pair[0] = _mm512_shuffle_epi8(_mm512_unpacklo_epi64(even, odd), swap);
    pair[1] = _mm512_shuffle_epi8(_mm512_unpackhi_epi64(even, odd), swap);
}

#define NAME(x) x##_8
#define WORD eight
#define LOAD(j, p, at)                                                                             \
    do {                                                                                           \
        __m512i pair[2];                                                                           \
        load_eight(pair, p, at);                                                                   \
        SET(j, (eight)pair[0], (eight)pair[1]);                                                    \
    } while (0)
#define ROR(x, n) ((eight)_mm512_ror_epi64((__m512i)(x), n))
#define TERNARY(x, y, z, table)                                                                    \
    ((eight)_mm512_ternarylogic_epi64((__m512i)(x), (__m512i)(y), (__m512i)(z), table))
#define XOR3(x, y, z) TERNARY(x, y, z, 0x96)
#define CHOOSE(x, y, z) TERNARY(x, y, z, 0xca)
#define MAJORITY(x, y, z) TERNARY(x, y, z, 0xe8)
#define IN_ORDER(x)
#include "sha512_rounds.inc"

#ifdef __clang__
#pragma clang attribute pop
#endif

#define NEEDS (AK_CPU_BMI2 | AK_CPU_AVX2 | AK_CPU_AVX512)

const ak_sha512_impl ak_sha512_avx512 = {
    .name = "avx512",
    .needs = NEEDS,
    .lanes = 1,
    .least = 1,
    .block = block_1,
    .extend = extend_1,
};
const ak_sha512_impl ak_sha512_avx512_x4 = {
    .name = "avx512 x4",
    .needs = NEEDS,
    .lanes = 4,
    .least = 2,
    .block = block_4,
    .extend = extend_4,
};
const ak_sha512_impl ak_sha512_avx512_x8 = {
    .name = "avx512 x8",
    .needs = NEEDS,
    .lanes = 8,
    .least = 5,
    .block = block_8,
    .extend = extend_8,
};
#endif
