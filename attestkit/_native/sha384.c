/* SHA-384 (FIPS 180-4): constants, and padding and state around the block functions. */
#include "ak.h"
#include "ak_dispatch.h"

#include <string.h>

const uint64_t ak_sha512_k[80] = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
    0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
    0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
    0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
    0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
    0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
    0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
    0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
    0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
    0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
    0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
    0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};

const uint64_t ak_sha384_start[8] = {
    0xcbbb9d5dc1059ed8, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939,
    0x67332667ffc00b31, 0x8eb44a8768581511, 0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa4,
};

/* Write the last one or two blocks of a message: remaining data, a one bit, zeros and the length in
 * bits. Returns their size in bytes. */
static size_t pad(uint8_t last[256], const uint8_t *data, size_t size)
{
    const size_t rest = size % 128, padded = rest < 112 ? 128 : 256;

    /* In steps, and with memmove although nothing overlaps: gcc would otherwise use string
     * instructions, whose startup takes a sixth of the time of a block. */
    for (size_t at = 0; at < padded; at += 64)
        memset(last + at, 0, 64);
    if (rest > 0)
        memmove(last, data + size - rest, rest);
    last[rest] = 0x80;
    ak_put_be64(last + padded - 16, (uint64_t)size >> 61);
    ak_put_be64(last + padded - 8, (uint64_t)size << 3);
    return padded;
}

static void put_digest(uint8_t *digest, const uint64_t *state, size_t lanes)
{
    for (unsigned i = 0; i < 6; i++)
        ak_put_be64(digest + 8 * i, state[lanes * i]);
}

void ak_sha384(const uint8_t *data, size_t size, uint8_t *digest)
{
    const ak_sha512_impl *impl = ak_sha512_for(1);
    AK_SHA512_ALIGNED uint64_t state[8];
    uint8_t last[256];
    const size_t padded = pad(last, data, size);

    memcpy(state, ak_sha384_start, sizeof state);
    for (const uint8_t *p = data; size >= 128; p += 128, size -= 128)
        impl->block(state, &p);
    for (const uint8_t *p = last; p < last + padded; p += 128)
        impl->block(state, &p);
    put_digest(digest, state, 1);
}

/* A message that is being hashed. */
typedef struct {
    const uint8_t *p; /* its next blocks: those of the message, then the last blocks */
    size_t blocks;    /* number of these blocks */
    size_t ending;    /* number of blocks at `last`; 0 once `p` points to them */
    uint8_t *digest;  /* output; NULL: no message */
    uint64_t state[8];
    uint8_t last[256];
} message;

/* The messages that are not started. */
typedef struct {
    const uint8_t *data;
    const uint32_t *offsets, *sizes;
    uint8_t *digests;
    size_t count;
} messages;

/* Continue with the last blocks of a message; return false if these are done, too. */
static bool to_ending(message *m)
{
    m->p = m->last;
    m->blocks = m->ending;
    m->ending = 0;
    return m->blocks > 0;
}

static void begin(message *m, messages *waiting)
{
    const size_t size = *waiting->sizes++;

    m->p = waiting->data;
    if (waiting->offsets)
        m->p += *waiting->offsets++;
    else
        waiting->data += size;
    m->blocks = size / 128;
    m->ending = pad(m->last, m->p, size) / 128;
    m->digest = waiting->digests;
    memcpy(m->state, ak_sha384_start, sizeof m->state);
    if (m->blocks == 0)
        (void)to_ending(m);
    waiting->digests += 48;
    waiting->count--;
}

static void load_state(uint64_t *state, size_t lanes, const message *m)
{
    for (unsigned i = 0; i < 8; i++)
        state[lanes * i] = m->state[i];
}

static void swap(message **lane, size_t i, size_t j)
{
    message *const m = lane[i];
    lane[i] = lane[j];
    lane[j] = m;
}

/* Hash as many blocks of each lane as the lane with the fewest blocks has. Idle lanes repeat the
 * work of another lane. */
static void fold_blocks(const ak_sha512_impl *impl, uint64_t *states, message *const *lane)
{
    const uint8_t *p[AK_SHA512_LANES];
    const message *shortest = NULL;

    for (size_t i = 0; i < impl->lanes; i++)
        if (lane[i]->digest && (!shortest || lane[i]->blocks < shortest->blocks))
            shortest = lane[i];
    const size_t steps = shortest->blocks;
    for (size_t i = 0; i < impl->lanes; i++)
        p[i] = lane[i]->digest ? lane[i]->p : shortest->p;
    for (size_t step = 0; step < steps; step++) {
        impl->block(states, p);
        for (size_t i = 0; i < impl->lanes; i++)
            p[i] += 128;
    }
    for (size_t i = 0; i < impl->lanes; i++)
        if (lane[i]->digest) {
            lane[i]->p += 128 * steps;
            lane[i]->blocks -= steps;
        }
}

/* Hash messages, one per lane, and start the next as soon as one is done, until so few are left
 * that fewer lanes are faster. The first `under_way` entries are started, the others are free. */
static void hash_some(message **lane, size_t under_way, messages *waiting)
{
    const ak_sha512_impl *impl = ak_sha512_for(under_way + waiting->count);
    const size_t lanes = impl->lanes;
    AK_SHA512_ALIGNED uint64_t states[8 * AK_SHA512_LANES] = {0};
    size_t live = 0;

    for (size_t i = 0; i < lanes; i++) {
        if (i >= under_way && waiting->count > 0)
            begin(lane[i], waiting);
        if (lane[i]->digest) {
            load_state(states + i, lanes, lane[i]);
            live++;
        }
    }
    while (live >= impl->least) {
        fold_blocks(impl, states, lane);
        for (size_t i = 0; i < lanes; i++) {
            message *const m = lane[i];
            if (!m->digest || m->blocks > 0 || to_ending(m))
                continue;
            put_digest(m->digest, states + i, lanes);
            m->digest = NULL;
            if (waiting->count > 0) {
                begin(m, waiting);
                load_state(states + i, lanes, m);
            } else {
                live--;
            }
        }
    }
    for (size_t i = 0; i < lanes; i++)
        for (unsigned j = 0; j < 8; j++)
            lane[i]->state[j] = states[lanes * j + i];
}

void ak_sha384_many(const uint8_t *data, const uint32_t *offsets, const uint32_t *sizes,
                    size_t count, uint8_t *digests)
{
    messages waiting = {data, offsets, sizes, digests, count};
    message room[AK_SHA512_LANES], *lane[AK_SHA512_LANES];
    size_t under_way = 0;

    for (size_t i = 0; i < AK_SHA512_LANES; i++) {
        lane[i] = &room[i];
        lane[i]->digest = NULL;
    }
    while (under_way + waiting.count > 0) {
        hash_some(lane, under_way, &waiting);
        under_way = 0;
        for (size_t i = 0; i < AK_SHA512_LANES; i++)
            if (lane[i]->digest)
                swap(lane, i, under_way++);
    }
}
