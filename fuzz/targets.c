/* What is written goes into the sum: memcheck then tells when some of it never was, and two CPUs'
 * sums can be compared. Memory is as large as what is written and no larger, for the same reason.
 */
#include "targets.h"

#include <stdlib.h>
#include <string.h>

#include "ak.h"
#include "ak_json.h"
#include "ak_log.h"
#include "ak_quote.h"

#define START 0xcbf29ce484222325 /* of FNV-1a */

static uint64_t add(uint64_t sum, const void *data, size_t size)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ p[i]) * 0x100000001b3;
    return sum;
}

static uint64_t add_number(uint64_t sum, uint64_t number)
{
    return add(sum, &number, sizeof number);
}

static void *room(size_t size)
{
    void *found = malloc(size);
    if (found == NULL && size != 0)
        abort();
    return found;
}

/* What cannot be, whatever the bytes are. */
static void never(int wrong)
{
    if (wrong)
        abort();
}

static uint64_t quote(const uint8_t *data, size_t size)
{
    ak_quote found;
    const ak_status status = ak_quote_walk(data, size, &found);

    if (status != AK_OK) {
        never(found.at > size);
        return add_number(add_number(START, status), found.at);
    }
    never(found.end > size);
    found.at = 0;
    return add(START, &found, sizeof found);
}

/* Gather a field of each width, and the four registers. */
static uint64_t gathered(const uint8_t *data, size_t size, const ak_quote_rows *rows)
{
    static const size_t fields[][2] = {{0, 16},   {16, 48},  {112, 8},
                                       {520, 64}, {584, 16}, {600, 48}};
    uint8_t *column = room(192 * rows->count);
    uint64_t sum = START;

    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        never(!ak_quote_column(data, size, rows, fields[i][0], fields[i][1], column));
        sum = add(sum, column, fields[i][1] * rows->count);
    }
    never(!ak_quote_four_columns(data, size, rows, 328, column));
    sum = add(sum, column, 192 * rows->count);
    free(column);
    return sum;
}

/* Quotes one behind the other, found and then told where they are. */
static uint64_t columns(const uint8_t *data, size_t size)
{
    const size_t most = size / AK_QUOTE_TD_MIN_SIZE;
    ak_quote_rows rows = {room(most * sizeof(uint64_t)), room(most), room(most), most};
    ak_quote_place place;
    ak_status status = ak_quote_rows_found(data, size, &rows, &place);
    uint64_t sum = add_number(START, status);

    if (status == AK_OK) {
        const uint64_t found = gathered(data, size, &rows);
        status = ak_quote_rows_given(data, size, &rows, &place);
        never(status != AK_OK || gathered(data, size, &rows) != found);
        sum = add_number(sum, found);
    } else {
        sum = add_number(add_number(sum, place.row), place.at);
    }
    free(rows.starts);
    free(rows.versions);
    free(rows.body_types);
    return sum;
}

/* Fold what a log extends, as one log, and as two of many with an empty one between. */
static uint64_t fold(const uint8_t *registers, const uint8_t *digests, size_t count)
{
    uint8_t values[192], many[3 * 192];
    const uint32_t half = (uint32_t)count / 2, counts[] = {half, 0, (uint32_t)count - half};
    const ak_status status = ak_replay(registers, digests, count, values);

    never(status != ak_replay_many(registers, digests, counts, 3, many));
    if (status != AK_OK)
        return add_number(START, status);
    return add(add(START, values, sizeof values), many, sizeof many);
}

/* Bytes of the shortest record: one digest of one byte, no event data. */
enum { SHORTEST = 12 + 2 + 1 + 4 };

static uint64_t log_sum(const uint8_t *data, size_t size, int ccel)
{
    ak_log log;
    const size_t most = size / SHORTEST + 1;
    ak_log_record *records = room(most * sizeof *records);
    ak_status status = ak_log_walk(data, size, ccel, most, records, &log);
    uint64_t sum = add_number(START, status);
    const size_t count = log.record_count, extending = log.extending_count;

    free(records);
    if (status != AK_OK) {
        never(log.at > size || status == AK_E_LOG_TOO_MANY);
        return add_number(sum, log.at);
    }
    records = room(count * sizeof *records);
    never(ak_log_walk(data, size, ccel, count, records, &log) != AK_OK || log.end > size);
    sum = add(add(sum, &log, sizeof log), records, count * sizeof *records);
    if (ccel) {
        uint8_t *registers = room(extending), *digests = room(48 * extending);
        ak_log_columns(data, records, count, registers, digests);
        sum = add(sum, digests, 48 * extending);
        sum = add_number(sum, fold(registers, digests, extending));
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

/* The room of a text is what its documentation says is enough. */
static uint64_t json(const uint8_t *data, size_t size)
{
    uint8_t *place = room(4 * size + 256);
    const ak_json_outcome outcome = ak_agent_json_walk(data, size, place, 4 * size + 256);
    uint64_t sum = add_number(START, outcome);

    if (outcome == AK_JSON_ACCEPTED) {
        const ak_agent_log *log = (const ak_agent_log *)(const void *)place;
        const uint8_t *registers = place + log->registers, *digests = place + log->digests;
        sum = add(sum, log, sizeof *log);
        sum = add(sum, place + log->rows, log->count * sizeof(ak_agent_row));
        sum = add_number(sum, fold(registers, digests, log->extending));
    }
    free(place);
    return sum;
}

static uint64_t depth(const uint8_t *data, size_t size)
{
    uint64_t sum = START;
    for (uint32_t most = 0; most < 256; most = 2 * most + 1)
        sum = add_number(sum, (uint64_t)ak_json_depth(data, size, most));
    return sum;
}

static uint64_t hex(const uint8_t *data, size_t size)
{
    uint8_t *bytes = room(size / 2), *text = room(2 * size), *back = room(size);
    uint64_t sum = START;

    if (ak_hex_decode(data, size, bytes))
        sum = add(sum, bytes, size / 2);
    ak_hex_encode(data, size, text);
    sum = add(sum, text, 2 * size);
    never(!ak_hex_decode(text, 2 * size, back));
    never(size != 0 && memcmp(back, data, size) != 0);
    free(bytes);
    free(text);
    free(back);
    return sum;
}

/* The first byte tells how many messages the others are; the last one is the longest. */
static uint64_t sha384(const uint8_t *data, size_t size)
{
    enum { MOST = 20 };
    uint32_t offsets[MOST], sizes[MOST];
    uint8_t digest[48];
    const size_t count = size ? 1 + data[0] % MOST : 1;
    uint8_t *digests = room(48 * count);
    size_t at = 0;

    for (size_t i = 0; i < count; i++) {
        const size_t left = size - at, part = i * left / count;
        offsets[i] = (uint32_t)at;
        sizes[i] = (uint32_t)(i + 1 == count ? left : part);
        at += sizes[i];
    }
    ak_sha384_many(data, offsets, sizes, count, digests);
    ak_sha384(data + offsets[count - 1], sizes[count - 1], digest);
    never(memcmp(digest, digests + 48 * (count - 1), 48) != 0);
    const uint64_t sum = add(START, digests, 48 * count);
    free(digests);
    return sum;
}

/* Registers, some of which do not exist, and their digests. */
static uint64_t replay(const uint8_t *data, size_t size)
{
    const size_t count = size / 49;
    return fold(data, data + count, count);
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
    uint8_t *place = room(size + 1);
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
    {"quote", quote},       {"columns", columns},     {"ccel", ccel},
    {"tpm", tpm},           {"json", json},           {"depth", depth},
    {"hex", hex},           {"sha384", sha384},       {"replay", replay},
    {"overread", overread}, {"unwritten", unwritten}, {"undefined", undefined},
    {NULL, NULL},
};

const fuzz_target *fuzz_target_of(const char *name)
{
    const fuzz_target *target = fuzz_targets;
    while (target->name != NULL && strcmp(target->name, name) != 0)
        target++;
    return target->name == NULL ? NULL : target;
}
