/* Hex decoding: 64 digits at a time (AVX-512 VBMI), 32 (AVX2), or one. */
#include "ak.h"
#include "ak_cpu.h"
#include "ak_hex.h"

/* Values of the digits; entries of other characters are 0. */
#define DIGIT 0x80
#define IS(n) (DIGIT | (n))
static const uint8_t values[256] __attribute__((aligned(64))) = {
    ['0'] = IS(0),  ['1'] = IS(1),  ['2'] = IS(2),  ['3'] = IS(3),  ['4'] = IS(4),  ['5'] = IS(5),
    ['6'] = IS(6),  ['7'] = IS(7),  ['8'] = IS(8),  ['9'] = IS(9),  ['a'] = IS(10), ['b'] = IS(11),
    ['c'] = IS(12), ['d'] = IS(13), ['e'] = IS(14), ['f'] = IS(15), ['A'] = IS(10), ['B'] = IS(11),
    ['C'] = IS(12), ['D'] = IS(13), ['E'] = IS(14), ['F'] = IS(15),
};

static size_t span_portable(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size && values[text[at]])
        at++;
    return at;
}

static bool decode_portable(const uint8_t *text, size_t size, uint8_t *bytes)
{
    uint8_t all = DIGIT;
    for (size_t i = 0; i < size / 2; i++) {
        const uint8_t high = values[text[2 * i]], low = values[text[2 * i + 1]];
        all &= high & low;
        bytes[i] = (uint8_t)(high << 4 | (low & 0x0f));
    }
    return all;
}

static const ak_hex_impl portable = {0, span_portable, decode_portable};

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define WITH_AVX2 __attribute__((target("avx2")))

/* Decode 32 characters; a byte of `is` is 0xff if the character is a digit. */
WITH_AVX2 static inline __m256i values_avx2(const uint8_t *text, __m256i *is)
{
    const __m256i c = _mm256_loadu_si256((const __m256i *)text);
    const __m256i figure = _mm256_sub_epi8(c, _mm256_set1_epi8('0'));
    const __m256i letter =
        _mm256_sub_epi8(_mm256_or_si256(c, _mm256_set1_epi8(0x20)), _mm256_set1_epi8('a'));
    const __m256i is_figure =
        _mm256_cmpeq_epi8(_mm256_min_epu8(figure, _mm256_set1_epi8(9)), figure);
    const __m256i is_letter =
        _mm256_cmpeq_epi8(_mm256_min_epu8(letter, _mm256_set1_epi8(5)), letter);

    *is = _mm256_or_si256(is_figure, is_letter);
    return _mm256_blendv_epi8(_mm256_add_epi8(letter, _mm256_set1_epi8(10)), figure, is_figure);
}

WITH_AVX2 static size_t span_avx2(const uint8_t *text, size_t size)
{
    size_t at = 0;
    for (; size - at >= 32; at += 32) {
        __m256i is;
        values_avx2(text + at, &is);
        const uint32_t none = ~(uint32_t)_mm256_movemask_epi8(is);
        if (none)
            return at + (size_t)__builtin_ctz(none);
    }
    return at + span_portable(text + at, size - at);
}

WITH_AVX2 static bool decode_avx2(const uint8_t *text, size_t size, uint8_t *bytes)
{
    const __m256i join = _mm256_set1_epi16(0x0110); /* 16 * first + second digit */
    __m256i all = _mm256_set1_epi8(-1);
    size_t at = 0;

    for (; size - at >= 32; at += 32) {
        __m256i is;
        const __m256i words = _mm256_maddubs_epi16(values_avx2(text + at, &is), join);
        const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
        all = _mm256_and_si256(all, is);
        _mm_storeu_si128((__m128i *)(bytes + at / 2), _mm256_castsi256_si128(halves));
    }
    return decode_portable(text + at, size - at, bytes + at / 2) && _mm256_movemask_epi8(all) == -1;
}

static const ak_hex_impl avx2 = {AK_CPU_AVX2, span_avx2, decode_avx2};

#define WITH_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,bmi2")))

/* Mask of the first `n` of 64 lanes, at most all. */
WITH_VBMI static inline __mmask64 lanes(size_t n)
{
    return n < 64 ? _bzhi_u64(UINT64_MAX, (unsigned)n) : UINT64_MAX;
}

/* Look up 64 characters; characters from 0x80 on find invalid entries. */
WITH_VBMI static inline __m512i values_vbmi(__m512i c)
{
    return _mm512_permutex2var_epi8(_mm512_load_si512(values), c, _mm512_load_si512(values + 64));
}

WITH_VBMI static inline __mmask64 which_are(__m512i c, __m512i found)
{
    return _mm512_movepi8_mask(_mm512_andnot_si512(c, found));
}

WITH_VBMI static size_t span_vbmi(const uint8_t *text, size_t size)
{
    for (size_t at = 0; at < size; at += 64) {
        const __m512i c = _mm512_maskz_loadu_epi8(lanes(size - at), text + at);
        const __mmask64 none = ~which_are(c, values_vbmi(c));
        if (none)
            return at + (size_t)__builtin_ctzll(none);
    }
    return size;
}

WITH_VBMI static inline __m256i join_vbmi(__m512i found)
{
    const __m512i nibbles = _mm512_and_si512(found, _mm512_set1_epi8(0x0f));
    return _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(nibbles, _mm512_set1_epi16(0x0110)));
}

WITH_VBMI static bool decode_vbmi(const uint8_t *text, size_t size, uint8_t *bytes)
{
    __m512i all = _mm512_set1_epi8(-1);
    size_t at = 0;

    for (; size - at >= 64; at += 64) {
        const __m512i c = _mm512_loadu_si512(text + at), found = values_vbmi(c);
        all = _mm512_and_si512(all, _mm512_andnot_si512(c, found));
        _mm256_storeu_si256((__m256i *)(bytes + at / 2), join_vbmi(found));
    }
    const __m512i c = _mm512_mask_loadu_epi8(_mm512_set1_epi8('0'), lanes(size - at), text + at);
    const __m512i found = values_vbmi(c);
    _mm256_mask_storeu_epi8(bytes + at / 2, (__mmask32)lanes((size - at) / 2), join_vbmi(found));
    return which_are(c, _mm512_and_si512(all, found)) == UINT64_MAX;
}

static const ak_hex_impl vbmi = {AK_CPU_VBMI | AK_CPU_AVX512 | AK_CPU_BMI2, span_vbmi, decode_vbmi};

/* Best first. */
static const ak_hex_impl *const impls[] = {&vbmi, &avx2, &portable};
#else
static const ak_hex_impl *const impls[] = {&portable};
#endif

const ak_hex_impl *ak_hex(void)
{
    const uint32_t found = ak_cpu_features();
    size_t best = 0;
    while (impls[best]->needs & ~found)
        best++;
    return impls[best];
}

int ak_hex_decode(const uint8_t *text, size_t size, uint8_t *found)
{
    return size % 2 == 0 && ak_hex()->decode(text, size, found);
}
