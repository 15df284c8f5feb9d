/* Internal interface of SHA-512: constants, and the block functions per instruction set. */
#ifndef AK_SHA512_H
#define AK_SHA512_H

#include <stddef.h>
#include <stdint.h>

#include "ak_cpu.h"

/* Round constants, FIPS 180-4, 4.2.3. Not defined in the files that use them, because gcc would
 * broadcast each visible constant to a register. */
extern const uint64_t ak_sha512_k[80];

/* Initial state of SHA-384, FIPS 180-4, 5.3.4. */
extern const uint64_t ak_sha384_start[8];

/* Maximum number of lanes (messages hashed in parallel), and alignment of arrays of lane words. */
#define AK_SHA512_LANES 8
#define AK_SHA512_ALIGNED _Alignas(64)

/* An implementation that hashes `lanes` messages in parallel. Words are in host byte order, word i
 * of a lane at index [lanes * i + lane]. */
typedef struct {
    const char *name;
    uint32_t needs; /* AK_CPU_* bits */
    unsigned lanes;
    unsigned least; /* for fewer messages, an implementation with fewer lanes is faster */
    /* Hash the block of 128 bytes at p[lane] into the eight words of state. */
    void (*block)(uint64_t *state, const uint8_t *const *p);
    /* Replace the six words of value by SHA-384(value || the 48 bytes at p[lane]). */
    void (*extend)(uint64_t *value, const uint8_t *const *p);
} ak_sha512_impl;

extern const ak_sha512_impl ak_sha512_avx512_x8, ak_sha512_avx512_x4, ak_sha512_avx512;
extern const ak_sha512_impl ak_sha512_avx2_x4, ak_sha512_avx2;
extern const ak_sha512_impl ak_sha512_portable;

/* Compilers recognise this form as one load or store with a byte swap. */
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
