/* Replay: fold the digests of a log into the four registers, each of which is one chain. */
#include "ak.h"
#include "ak_sha512.h"

#include <string.h>

#define REGISTERS 4
#define DIGEST 48
#define WORDS 6 /* of 64 bits in a SHA-384 value */

/* value = SHA-384(value || digest): 96 bytes, so one block, whose last four words are padding. */
static void extend(uint64_t value[WORDS], const uint8_t *digest)
{
    uint64_t state[8], w[16];

    memcpy(state, ak_sha384_start, sizeof state);
    for (unsigned i = 0; i < WORDS; i++) {
        w[i] = value[i];
        w[WORDS + i] = ak_be64(digest + 8 * i);
    }
    w[12] = 0x8000000000000000;
    w[13] = 0;
    w[14] = 0;
    w[15] = 96 * 8;
    ak_sha512_portable(state, w);
    memcpy(value, state, WORDS * sizeof *value);
}

ak_status ak_replay(const uint8_t *registers, const uint8_t *digests, size_t count, uint8_t *values)
{
    uint64_t value[REGISTERS][WORDS] = {{0}};

    for (size_t i = 0; i < count; i++) {
        if (registers[i] >= REGISTERS)
            return AK_E_REGISTER;
        extend(value[registers[i]], digests + DIGEST * i);
    }
    for (unsigned r = 0; r < REGISTERS; r++)
        for (unsigned i = 0; i < WORDS; i++)
            ak_put_be64(values + DIGEST * r + 8 * i, value[r][i]);
    return AK_OK;
}

ak_status ak_replay_many(const uint8_t *registers, const uint8_t *digests, const uint32_t *counts,
                         size_t logs, uint8_t *values)
{
    for (size_t i = 0; i < logs; i++) {
        const ak_status status = ak_replay(registers, digests, counts[i], values);
        if (status != AK_OK)
            return status;
        registers += counts[i];
        digests += (size_t)DIGEST * counts[i];
        values += REGISTERS * DIGEST;
    }
    return AK_OK;
}
