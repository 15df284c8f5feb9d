/* The SHA-512 family inside the core: constants, and one block function per instruction set. */
#ifndef AK_SHA512_H
#define AK_SHA512_H

#include <stddef.h>
#include <stdint.h>

/* Round constants, FIPS 180-4, 4.2.3. */
extern const uint64_t ak_sha512_k[80];

/* Initial state of SHA-384, FIPS 180-4, 5.3.4. */
extern const uint64_t ak_sha384_start[8];

/* Fold one block, sixteen words in host order, into the state. The words are used up. */
void ak_sha512_portable(uint64_t state[8], uint64_t w[16]);

/* SHA-384 of many messages: message i is the sizes[i] bytes at data + offsets[i], its digest the 48
 * bytes at digests + 48 * i. */
void ak_sha384_many(const uint8_t *data, const uint32_t *offsets, const uint32_t *sizes,
                    size_t count, uint8_t *digests);

static inline uint64_t ak_be64(const uint8_t *p)
{
    return (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 |
           (uint64_t)p[3] << 32 | (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 |
           (uint64_t)p[6] << 8 | (uint64_t)p[7];
}

static inline void ak_put_be64(uint8_t *p, uint64_t x)
{
    for (unsigned i = 0; i < 8; i++)
        p[i] = (uint8_t)(x >> (56 - 8 * i));
}

#endif
