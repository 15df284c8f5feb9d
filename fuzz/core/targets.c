/* What is written goes into the sum: memcheck then tells when some of it never was, and two CPUs'
 * sums can be compared. Memory is as large as what is written and no larger, for the same reason.
 */
#include "targets.h"

#include <string.h>

#include "ak.h"
#include "ak_cursor.h"
#include "ak_hex.h"
#include "ak_log.h"

/* Fold what a log extends, as one log, and as two of many with an empty one between. */
static uint64_t fold(const uint8_t *registers, const uint8_t *digests, size_t count)
{
    uint8_t values[192], many[3 * 192];
    const uint32_t half = (uint32_t)count / 2, counts[] = {half, 0, (uint32_t)count - half};
    const ak_status status = ak_replay(registers, digests, count, values);

    fuzz_never(status != ak_replay_many(registers, digests, counts, 3, many));
    if (status != AK_OK)
        return fuzz_add_number(FUZZ_START, status);
    return fuzz_add(fuzz_add(FUZZ_START, values, sizeof values), many, sizeof many);
}

/* Bytes of the shortest record: one digest of one byte, no event data. */
enum { SHORTEST = 12 + 2 + 1 + 4 };

/* Parts of records follow each other inside the log, and there are no more than asked for. */
static void see_records(const uint8_t *data, const ak_log *log, const ak_log_record *records)
{
    uint64_t end = 0;

    for (const ak_log_record *r = records; r < records + log->record_count; r++) {
        fuzz_never(r->offset < end || r->digests < r->offset || r->data < r->digests);
        fuzz_never(r->digest_count < 1 || r->digest_count > (log->agile ? log->bank_count : 1));
        end = (uint64_t)r->data + r->data_size;
        fuzz_never(end > log->end || ak_le32(data + r->data - 4) != r->data_size);
    }
    fuzz_never(log->extending_count > log->record_count);
}

static uint64_t log_sum(const uint8_t *data, size_t size, int ccel)
{
    ak_log log;
    const size_t most = size / SHORTEST + 1;
    ak_log_record *records = fuzz_room(most * sizeof *records);
    ak_status status = ak_log_walk(data, size, ccel, most, records, &log);
    uint64_t sum = fuzz_add_number(FUZZ_START, status);
    const size_t count = log.record_count, extending = log.extending_count;

    free(records);
    if (status != AK_OK) {
        fuzz_never(log.at > size || status == AK_E_LOG_TOO_MANY);
        return fuzz_add_number(sum, log.at);
    }
    records = fuzz_room(count * sizeof *records);
    fuzz_never(ak_log_walk(data, size, ccel, count, records, &log) != AK_OK || log.end > size);
    see_records(data, &log, records);
    sum = fuzz_add(fuzz_add(sum, &log, sizeof log), records, count * sizeof *records);
    if (count != 0)
        fuzz_never(ak_log_walk(data, size, ccel, count - 1, records, &log) != AK_E_LOG_TOO_MANY);
    if (ccel) {
        (void)ak_log_walk(data, size, ccel, count, records, &log);
        uint8_t *registers = fuzz_room(extending), *digests = fuzz_room(48 * extending);
        ak_log_columns(data, records, count, registers, digests);
        sum = fuzz_add(sum, digests, 48 * extending);
        sum = fuzz_add_number(sum, fold(registers, digests, extending));
        free(registers);
        free(digests);
    }
    free(records);
    return sum;
}

static uint64_t ccel(const uint8_t *data, size_t size)
{
    return log_sum(data, size, 1);
}

static uint64_t tpm(const uint8_t *data, size_t size)
{
    return log_sum(data, size, 0);
}

static void see_row(const ak_agent_row *row, size_t size)
{
    fuzz_never(row->imr > 3 || row->version < 1 || row->version > 2);
    fuzz_never(row->digest_size != 0 && row->digest_size != 48);
    fuzz_never(row->digest + 2ULL * row->digest_size > size && row->digest_size != 0);
    fuzz_never((uint64_t)row->name + row->name_size > size);
    fuzz_never((uint64_t)row->payload + row->payload_size > size || row->payload_size % 2 != 0);
}

/* The room of a text is what its documentation says is enough. */
static uint64_t json(const uint8_t *data, size_t size)
{
    uint8_t *place = fuzz_room(4 * size + 256);
    const ak_json_outcome outcome = ak_agent_json_walk(data, size, place, 4 * size + 256);
    uint64_t sum = fuzz_add_number(FUZZ_START, outcome);

    if (outcome == AK_JSON_ACCEPTED) {
        const ak_agent_log *log = (const ak_agent_log *)(const void *)place;
        const uint8_t *registers = place + log->registers, *digests = place + log->digests;
        const ak_agent_row *rows = (const ak_agent_row *)(const void *)(place + log->rows);
        for (size_t i = 0; i < log->count; i++)
            see_row(&rows[i], size);
        fuzz_never(log->extending > log->count);
        sum = fuzz_add(sum, log, sizeof *log);
        sum = fuzz_add(sum, place + log->rows, log->count * sizeof(ak_agent_row));
        sum = fuzz_add_number(sum, fold(registers, digests, log->extending));
    }
    free(place);
    return sum;
}

static bool is_digit(uint8_t c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

static uint64_t hex(const uint8_t *data, size_t size)
{
    uint8_t *bytes = fuzz_room(size / 2), *text = fuzz_room(2 * size), *back = fuzz_room(size);
    uint64_t sum = FUZZ_START;
    size_t digits = 0;

    while (digits < size && is_digit(data[digits]))
        digits++;
    fuzz_never(ak_hex()->span(data, size) != digits);
    const bool decoded = ak_hex_decode(data, size, bytes);
    fuzz_never(decoded != (digits == size && size % 2 == 0));
    if (decoded)
        sum = fuzz_add(sum, bytes, size / 2);
    for (size_t i = 0; i < 2 * size; i++)
        text[i] = (uint8_t)"0123456789abcdef"[data[i / 2] >> (i % 2 ? 0 : 4) & 0x0f];
    fuzz_never(!ak_hex_decode(text, 2 * size, back));
    fuzz_never(size != 0 && memcmp(back, data, size) != 0);
    free(bytes);
    free(text);
    free(back);
    return sum;
}

/* The first byte tells how many messages the others are; the last one is the longest. All at once,
 * by their offsets and without, they are what each is alone. */
static uint64_t sha384(const uint8_t *data, size_t size)
{
    enum { MOST = 20 };
    uint32_t offsets[MOST], sizes[MOST];
    uint8_t digest[48];
    const size_t count = size ? 1 + data[0] % MOST : 1;
    uint8_t *digests = fuzz_room(48 * count), *joined = fuzz_room(48 * count);
    size_t at = 0;

    for (size_t i = 0; i < count; i++) {
        const size_t left = size - at, part = i * left / count;
        offsets[i] = (uint32_t)at;
        sizes[i] = (uint32_t)(i + 1 == count ? left : part);
        at += sizes[i];
    }
    ak_sha384_many(data, offsets, sizes, count, digests);
    ak_sha384_many(data, NULL, sizes, count, joined);
    fuzz_never(memcmp(digests, joined, 48 * count) != 0);
    for (size_t i = 0; i < count; i++) {
        ak_sha384(data + offsets[i], sizes[i], digest);
        fuzz_never(memcmp(digest, digests + 48 * i, 48) != 0);
    }
    const uint64_t sum = fuzz_add(FUZZ_START, digests, 48 * count);
    free(digests);
    free(joined);
    return sum;
}

/* The three digests of a message, each in memory of exactly its size. */
static uint64_t keccak(const uint8_t *data, size_t size)
{
    uint64_t sum = FUZZ_START;

    for (size_t digest_size = 32; digest_size <= 64; digest_size += 16) {
        uint8_t *digest = fuzz_room(digest_size);
        ak_keccak(data, size, digest_size, digest);
        sum = fuzz_add(sum, digest, digest_size);
        free(digest);
    }
    return sum;
}

/* Registers, some of which do not exist, and their digests. */
static uint64_t replay(const uint8_t *data, size_t size)
{
    const size_t count = size / 49;
    return fold(data, data + count, count);
}

/* How many logs are replayed together, and how many events they have at most. It is few, for that
 * is fast, but of many bytes as many as it takes to fill a window of the core. */
enum { FEW = 12, FEW_EVENTS = 4, MANY = 80, MANY_EVENTS = 30, MANY_BYTES = 500 };

static size_t count_events(const uint8_t *data, size_t logs, uint32_t *counts, uint32_t most)
{
    size_t all = 0;

    for (size_t i = 0; i < logs; i++) {
        counts[i] = data[1 + i] % most;
        all += counts[i];
    }
    return all;
}

/* One byte: how many logs; one each: how many events; then bytes that are repeated as registers and
 * digests. Together logs are what each is alone. */
static uint64_t replays(const uint8_t *data, size_t size)
{
    uint32_t counts[MANY];
    uint8_t value[192];
    const bool many = size > MANY_BYTES;
    const size_t logs = size == 0 ? 0 : data[0] % (size_t)(many ? MANY : FEW);

    if (size < logs + 2)
        return FUZZ_START;
    const size_t events = count_events(data, logs, counts, many ? MANY_EVENTS : FEW_EVENTS),
                 left = size - 1 - logs;
    const uint8_t *any = data + 1 + logs;
    uint8_t *registers = fuzz_room(events), *digests = fuzz_room(48 * events);
    uint8_t *values = fuzz_room(192 * logs);
    ak_status expected = AK_OK;
    for (size_t i = 0; i < events; i++)
        registers[i] = any[i % left] == 0xff ? 4 : any[i % left] & 3;
    for (size_t i = 0; i < 48 * events; i++)
        digests[i] = any[i % left];
    const ak_status status = ak_replay_many(registers, digests, counts, logs, values);
    for (size_t i = 0, at = 0; i < logs && expected == AK_OK; at += counts[i++]) {
        expected = ak_replay(registers + at, digests + 48 * at, counts[i], value);
        fuzz_never(status == AK_OK && memcmp(value, values + 192 * i, 192) != 0);
    }
    fuzz_never(status != expected);
    uint64_t sum = fuzz_add_number(FUZZ_START, status);
    if (status == AK_OK)
        sum = fuzz_add(sum, values, 192 * logs);
    free(registers);
    free(digests);
    free(values);
    return sum;
}

/* Three that are wrong, by which a rig shows that it sees such a thing. The pointers keep compilers
 * from seeing it first. */
static uint64_t overread(const uint8_t *data, size_t size)
{
    const volatile uint8_t *p = data;
    return p[size];
}

static uint64_t unwritten(const uint8_t *data, size_t size)
{
    uint8_t *place = fuzz_room(size + 1);
    uint8_t *volatile p = place;
    (void)data;
    const uint64_t sum = p[size] == 7;
    free(place);
    return sum;
}

static uint64_t undefined(const uint8_t *data, size_t size)
{
    volatile int most = INT32_MAX;
    (void)data;
    return (uint64_t)(most + (size != 0));
}

const fuzz_target fuzz_targets[] = {
    {"quote", fuzz_quote, true},
    {"among", fuzz_among, true},
    {"columns", fuzz_columns, true},
    {"rows", fuzz_rows, true},
    {"pck", fuzz_pck, false},
    {"ccel", ccel, true},
    {"tpm", tpm, false},
    {"json", json, true},
    {"pieces", fuzz_pieces, true},
    {"depth", fuzz_depth, false},
    {"cbor", fuzz_cbor, false},
    {"evidence", fuzz_evidence, false},
    {"hex", hex, true},
    {"sha256", fuzz_sha256, true},
    {"sha384", sha384, true},
    {"keccak", keccak, false},
    {"kernels", fuzz_kernels, false},
    {"replay", replay, true},
    {"replays", replays, true},
    {"cpuid", fuzz_cpuid, false},
    {"overread", overread, false},
    {"unwritten", unwritten, false},
    {"undefined", undefined, false},
    {NULL, NULL, false},
};

const fuzz_target *fuzz_target_of(const char *name)
{
    const fuzz_target *target = fuzz_targets;
    while (target->name != NULL && strcmp(target->name, name) != 0)
        target++;
    return target->name == NULL ? NULL : target;
}
