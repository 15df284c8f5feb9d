/* Functions that the core's files have for each other: pieces of JSON, CBOR, evidence, kernels. */
#include <string.h>

#include "ak_cbor.h"
#include "ak_cpu.h"
#include "ak_dispatch.h"
#include "ak_evidence.h"
#include "ak_json.h"
#include "ak_sha256.h"
#include "targets.h"

static ak_json reader(const uint8_t *data, size_t size)
{
    return (ak_json){{data, data + size}, ak_hex(), true};
}

/* A value that is accepted is one by itself too, and nests no deeper than it may. */
static uint64_t value(const uint8_t *data, size_t size)
{
    ak_json j = reader(data, size);
    const ak_json_outcome outcome = ak_json_value(&j);
    const size_t end = (size_t)(j.at.p - data);

    fuzz_never(end > size);
    if (outcome != AK_JSON_ACCEPTED)
        return fuzz_add_number(FUZZ_START, outcome);
    ak_json again = reader(data, end);
    fuzz_never(ak_json_value(&again) != AK_JSON_ACCEPTED || again.at.p != again.at.end);
    fuzz_never(ak_json_depth(data, end, AK_JSON_MAX_DEPTH) != -1);
    return fuzz_add_number(FUZZ_START, end);
}

/* A string means no more bytes than it has, which are UTF-8 if its own are. */
static uint64_t string(const uint8_t *data, size_t size)
{
    ak_json j = reader(data, size);
    ak_json_text text;

    if (ak_json_string(&j, &text) != AK_JSON_ACCEPTED)
        return FUZZ_START;
    uint8_t *out = fuzz_room(text.size);
    const size_t meant = ak_json_unescape(&j, &text, out);
    fuzz_never(text.p < data || (size_t)(text.p - data) + text.size >= size);
    fuzz_never(meant != SIZE_MAX && meant > text.size);
    if (!text.escaped)
        fuzz_never(meant != text.size || memcmp(out, text.p, meant) != 0);
    if (meant != SIZE_MAX)
        fuzz_never(ak_json_utf8(text.p, text.size) != ak_json_utf8(out, meant));
    const uint64_t sum = fuzz_add(FUZZ_START, out, meant == SIZE_MAX ? 0 : meant);
    free(out);
    return sum;
}

static uint64_t hex_string(const uint8_t *data, size_t size)
{
    ak_json j = reader(data, size);
    ak_json_text text;
    const ak_json_outcome outcome = ak_json_hex(&j, &text);

    if (outcome != AK_JSON_ACCEPTED)
        return fuzz_add_number(FUZZ_START, outcome);
    uint8_t *bytes = fuzz_room(text.size / 2);
    fuzz_never(text.size % 2 != 0 || !ak_hex_decode(text.p, text.size, bytes));
    const uint64_t sum = fuzz_add(FUZZ_START, bytes, text.size / 2);
    free(bytes);
    return sum;
}

static uint64_t number(const uint8_t *data, size_t size, uint32_t max)
{
    ak_json j = reader(data, size);
    uint32_t found = 0;
    const ak_json_outcome outcome = ak_json_number(&j, max, &found);

    fuzz_never(outcome == AK_JSON_ACCEPTED && found > max);
    return fuzz_add_number(fuzz_add_number(FUZZ_START, outcome),
                           outcome == AK_JSON_ACCEPTED ? found : 0);
}

uint64_t fuzz_pieces(const uint8_t *data, size_t size)
{
    uint64_t sum = fuzz_add_number(FUZZ_START, value(data, size));
    sum = fuzz_add_number(sum, string(data, size));
    sum = fuzz_add_number(sum, hex_string(data, size));
    sum = fuzz_add_number(sum, number(data, size, 3));
    sum = fuzz_add_number(sum, number(data, size, UINT32_MAX));
    return fuzz_add_number(sum, ak_json_utf8(data, size));
}

/* The same as ak_json_depth, a character at a time. */
static int64_t slow_depth(const uint8_t *text, size_t size, uint32_t most)
{
    bool inside = false;
    int64_t depth = 0;

    for (size_t i = 0; i < size; i++) {
        const uint8_t c = text[i], next = i + 1 < size ? text[i + 1] : 0;
        if (c == '"')
            inside = !inside;
        else if (c == '\\' && (inside || next == '"' || next == '\\'))
            i++;
        else if (!inside && (c == '[' || c == '{') && ++depth > most)
            return (int64_t)i;
        else if (!inside && (c == ']' || c == '}'))
            depth--;
    }
    return -1;
}

uint64_t fuzz_depth(const uint8_t *data, size_t size)
{
    uint64_t sum = FUZZ_START;
    for (uint32_t most = 0; most < 256; most = 4 * most + 3) {
        const int64_t found = ak_json_depth(data, size, most);
        fuzz_never(found != slow_depth(data, size, most));
        sum = fuzz_add_number(sum, (uint64_t)found);
    }
    return sum;
}

/* Check with room for exactly so many keys. */
static ak_status cbor(const uint8_t *data, size_t size, int canonical, size_t room, size_t *at)
{
    const uint8_t **keys = fuzz_room(room * sizeof *keys);
    const ak_status status = ak_cbor_check(data, size, canonical, keys, room, at);

    free(keys);
    return status;
}

/* An accepted document is rejected with a byte removed or added. A canonical document is accepted
 * with and without the check of canonical form. A table with fewer keys than the document is too
 * small. */
uint64_t fuzz_cbor(const uint8_t *data, size_t size)
{
    uint64_t sum = FUZZ_START;
    size_t at = 0;

    for (int canonical = 0; canonical < 2; canonical++) {
        const ak_status status = cbor(data, size, canonical, size, &at);
        fuzz_never(at > size);
        sum = fuzz_add_number(fuzz_add_number(sum, status), at);
        for (size_t room = 0; room < 4 && room < size; room++) {
            const ak_status less = cbor(data, size, canonical, room, &at);
            fuzz_never(less != status && less != AK_E_CBOR_VALUES);
        }
        if (status == AK_E_CBOR_TRAILING) {
            (void)cbor(data, size, canonical, size, &at);
            fuzz_never(at == 0 || at == size || cbor(data, at, canonical, at, &at) != AK_OK);
        }
        if (status != AK_OK)
            continue;
        fuzz_never(cbor(data, size, 0, size, &at) != AK_OK);
        fuzz_never(cbor(data, size - 1, canonical, size, &at) != AK_E_CBOR_TRUNCATED);
    }
    return sum;
}

/* Read a part that is inside the evidence. */
static uint64_t add_part(uint64_t sum, const ak_cursor *whole, ak_part part)
{
    fuzz_never(part.p < whole->p || part.p > whole->end);
    fuzz_never(part.size > (size_t)(whole->end - part.p));
    return fuzz_add(sum, part.p, part.size);
}

static uint64_t add_decoded(uint64_t sum, const ak_evidence_codec *codec, ak_part part)
{
    uint8_t *bytes = fuzz_room(part.size);
    codec->decode(part, bytes);
    sum = fuzz_add(sum, bytes, part.size);
    free(bytes);
    return sum;
}

static bool add_events(uint64_t *sum, const ak_cursor *whole, ak_cursor *c, uint32_t count,
                       bool (*read)(ak_cursor *c, ak_wire_event *event), bool is_runtime)
{
    for (uint32_t i = 0; i < count; i++) {
        ak_wire_event e = {.preimage.p = NULL};
        if (!read(c, &e))
            return false;
        fuzz_never(e.version < 1 || e.version > 2);
        *sum = add_part(add_part(*sum, whole, e.name), whole, e.payload);
        if (!is_runtime)
            *sum = add_part(fuzz_add_number(*sum, e.event_type ^ e.imr), whole, e.digest);
        if (e.preimage.p != NULL)
            *sum = add_part(*sum, whole, e.preimage);
    }
    return true;
}

/* Return whether the bytes are evidence. */
static bool add_evidence(uint64_t *sum, const ak_evidence_codec *codec, ak_cursor c)
{
    const ak_cursor whole = c;
    ak_td_evidence td = {.has_collateral = false};
    if (!codec->begin(&c, &td) || !add_events(sum, &whole, &c, td.events, codec->event, false) ||
        !codec->middle(&c, &td) ||
        !add_events(sum, &whole, &c, td.runtime_events, codec->runtime_event, true) ||
        !codec->finish(&c, &td))
        return false;
    fuzz_never(c.p != c.end || td.events > AK_EVIDENCE_MAX_ITEMS);
    *sum = add_decoded(add_part(*sum, &whole, td.config), codec, td.report_data);
    *sum = add_decoded(*sum, codec, td.quote);
    if (td.has_collateral)
        *sum = add_part(*sum, &whole, td.collateral);
    return true;
}

/* Bytes are evidence in one encoding at most, and not when one is missing. */
uint64_t fuzz_evidence(const uint8_t *data, size_t size)
{
    const ak_evidence_codec *const codecs[] = {&ak_evidence_scale, &ak_evidence_msgpack,
                                               &ak_evidence_cmw};
    uint64_t sum = FUZZ_START;
    bool found = false;

    for (size_t i = 0; i < 3; i++) {
        if (!add_evidence(&sum, codecs[i], (ak_cursor){data, data + size}))
            continue;
        fuzz_never(found);
        fuzz_never(add_evidence(&sum, codecs[i], (ak_cursor){data, data + size - 1}));
        found = true;
    }
    return fuzz_add_number(sum, found);
}

enum { BLOCK = 128, DIGEST = 48, LANES = AK_SHA512_LANES };

/* Fold what is at p into state, lanes at once, and each as the portable kernel does it. */
static void compare(const ak_sha512_impl *impl, const uint64_t *state, const uint8_t *const *p,
                    bool extend)
{
    const size_t words = extend ? 6 : 8;
    AK_SHA512_ALIGNED uint64_t all[8 * LANES] = {0};

    for (size_t lane = 0; lane < impl->lanes; lane++)
        for (size_t i = 0; i < words; i++)
            all[impl->lanes * i + lane] = state[i] ^ lane;
    (extend ? impl->extend : impl->block)(all, p);
    for (size_t lane = 0; lane < impl->lanes; lane++) {
        AK_SHA512_ALIGNED uint64_t one[8];
        for (size_t i = 0; i < words; i++)
            one[i] = state[i] ^ lane;
        (extend ? ak_sha512_portable.extend : ak_sha512_portable.block)(one, &p[lane]);
        for (size_t i = 0; i < words; i++)
            fuzz_never(all[impl->lanes * i + lane] != one[i]);
    }
}

/* Each kernel of this CPU writes what the portable one does. The last lane's bytes are the last
 * ones there are. */
uint64_t fuzz_kernels(const uint8_t *data, size_t size)
{
    const uint8_t *blocks[LANES], *digests[LANES];
    uint64_t state[8];

    if (size < BLOCK)
        return FUZZ_START;
    memcpy(state, data, sizeof state);
    for (size_t i = 0; i < LANES; i++) {
        blocks[i] = data + (size - BLOCK) * i / (LANES - 1);
        digests[i] = data + (size - DIGEST) * i / (LANES - 1);
    }
    for (size_t i = 0; i < sizeof ak_sha512_impls / sizeof ak_sha512_impls[0]; i++) {
        const ak_sha512_impl *impl = ak_sha512_impls[i];
        if ((impl->needs & ~ak_cpu_features()) != 0)
            continue;
        /* of fewer lanes the last ones, so that the end of the data is among them */
        compare(impl, state, blocks + (LANES - impl->lanes), false);
        compare(impl, state, digests + (LANES - impl->lanes), true);
    }
    return fuzz_add(FUZZ_START, state, sizeof state);
}

uint64_t fuzz_sha256(const uint8_t *data, size_t size)
{
    uint8_t digest[32];

    if (size < 64)
        return FUZZ_START;
    ak_sha256_key_and(data, data + 64, size - 64, digest);
    return fuzz_add(FUZZ_START, digest, sizeof digest);
}

/* Four bytes each: leaf, subleaf, limit. What they say is the CPU's affair, so the sum is not of
 * it; features are those of the CPU that the limit allows. */
uint64_t fuzz_cpuid(const uint8_t *data, size_t size)
{
    if (size < 12)
        return FUZZ_START;
    uint32_t *registers = fuzz_room(4 * sizeof *registers);
    const uint32_t limit = ak_le32(data + 8), features = ak_cpu_features();
    ak_cpuid(ak_le32(data), ak_le32(data + 4), registers);
    ak_cpu_limit(limit);
    fuzz_never(ak_cpu_features() & ~limit);
    fuzz_never((ak_cpu_features() ^ features) & limit & features);
    ak_cpu_limit(UINT32_MAX);
    fuzz_never((features & AK_CPU_VBMI) != 0 && (features & AK_CPU_AVX512) == 0);
    free(registers);
    return FUZZ_START;
}
