/* Keccak with its original padding (the Keccak submission to SHA-3, version 3), as Ethereum uses
 * it; the permutation is Keccak-f[1600] of FIPS 202, 3.2 and 3.3. No branch or address depends on
 * the message. */
#include "ak.h"
#include "ak_cursor.h"

enum { LANES = 25, ROUNDS = 24, STATE = 200, MAX_RATE = STATE - 2 * 32 };

/* iota, by round. */
static const uint64_t constants[ROUNDS] = {
    0x0000000000000001, 0x0000000000008082, 0x800000000000808a, 0x8000000080008000,
    0x000000000000808b, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
    0x000000000000008a, 0x0000000000000088, 0x0000000080008009, 0x000000008000000a,
    0x000000008000808b, 0x800000000000008b, 0x8000000000008089, 0x8000000000008003,
    0x8000000000008002, 0x8000000000000080, 0x000000000000800a, 0x800000008000000a,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
};

static inline uint64_t rotate(uint64_t lane, unsigned bits)
{
    return lane << bits | lane >> (-bits & 63);
}

/* Lane (x, y) is a[x + 5 * y]. */
static void permute(uint64_t a[LANES])
{
    /* rho by lane, and the lane that pi moves it to. */
    static const uint8_t bits[LANES] = {0,  1,  62, 28, 27, 36, 44, 6,  55, 20, 3,  10, 43,
                                        25, 39, 41, 45, 15, 21, 8,  18, 2,  61, 56, 14};
    static const uint8_t target[LANES] = {0,  10, 20, 5, 15, 16, 1,  11, 21, 6, 7,  17, 2,
                                          12, 22, 23, 8, 18, 3,  13, 14, 24, 9, 19, 4};
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t column[5], moved[LANES];
#pragma GCC unroll 5
        for (int x = 0; x < 5; x++)
            column[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
#pragma GCC unroll 25
        for (int i = 0; i < LANES; i++) {
            const uint64_t theta = column[(i + 4) % 5] ^ rotate(column[(i + 1) % 5], 1);
            moved[target[i]] = rotate(a[i] ^ theta, bits[i]);
        }
#pragma GCC unroll 25
        for (int i = 0; i < LANES; i++) {
            const int row = i - i % 5;
            a[i] = moved[i] ^ (~moved[row + (i + 1) % 5] & moved[row + (i + 2) % 5]);
        }
        a[0] ^= constants[round];
    }
}

static void absorb(uint64_t a[LANES], const uint8_t *block, size_t rate)
{
    for (size_t i = 0; i < rate / 8; i++)
        a[i] ^= ak_le64(block + 8 * i);
    permute(a);
}

void ak_keccak(const uint8_t *data, size_t size, size_t digest_size, uint8_t *digest)
{
    const size_t rate = STATE - 2 * digest_size;
    uint64_t a[LANES] = {0};
    uint8_t last[MAX_RATE] = {0};

    for (; size >= rate; data += rate, size -= rate)
        absorb(a, data, rate);
    if (size > 0)
        memcpy(last, data, size);
    last[size] = 0x01;
    last[rate - 1] |= 0x80;
    absorb(a, last, rate);
    for (size_t i = 0; i < digest_size; i++)
        digest[i] = (uint8_t)(a[i / 8] >> (8 * (i % 8)));
}
