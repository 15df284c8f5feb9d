/* The SHA-512 family inside the core: constants, and how each instruction set folds blocks. */
#ifndef AK_SHA512_H
#define AK_SHA512_H

#include <stddef.h>
#include <stdint.h>

#include "ak_cpu.h"

/* Round constants, FIPS 180-4, 4.2.3. Outside of the files that use them, because gcc makes a
 * broadcast register of each constant it can see. */
extern const uint64_t ak_sha512_k[80];

/* Initial state of SHA-384, FIPS 180-4, 5.3.4. */
extern const uint64_t ak_sha384_start[8];

/* The most messages that any implementation hashes side by side, and how arrays with a word of
 * each are aligned. */
#define AK_SHA512_LANES 8
#define AK_SHA512_ALIGNED _Alignas(64)

/* One way to hash `lanes` messages side by side. Words are in host order, word i of a lane at
 * [lanes * i + lane]. */
typedef struct {
    const char *name;
    uint32_t needs; /* AK_CPU_* bits */
    unsigned lanes;
    unsigned least; /* for fewer messages than this one with fewer lanes is faster */
    /* Fold the 128 bytes at p[lane] into the eight words of state. */
    void (*block)(uint64_t *state, const uint8_t *const *p);
    /* Replace the six words of value by SHA-384(value || the 48 bytes at p[lane]). */
    void (*extend)(uint64_t *value, const uint8_t *const *p);
} ak_sha512_impl;

extern const ak_sha512_impl ak_sha512_avx512_x8, ak_sha512_avx512_x4, ak_sha512_avx512;
extern const ak_sha512_impl ak_sha512_avx2_x4, ak_sha512_avx2;
extern const ak_sha512_impl ak_sha512_portable;

/* Written out so that compilers see one load or store with its bytes swapped. */
static inline uint64_t ak_be64(const uint8_t *p)
{
    return (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 |
           (uint64_t)p[3] << 32 | (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 |
           (uint64_t)p[6] << 8 | (uint64_t)p[7];
}

static inline void ak_put_be64(uint8_t *p, uint64_t x)
{
    p[0] = (uint8_t)(x >> 56);
    p[1] = (uint8_t)(x >> 48);
    p[2] = (uint8_t)(x >> 40);
    p[3] = (uint8_t)(x >> 32);
    p[4] = (uint8_t)(x >> 24);
    p[5] = (uint8_t)(x >> 16);
    p[6] = (uint8_t)(x >> 8);
    p[7] = (uint8_t)x;
}

#endif
