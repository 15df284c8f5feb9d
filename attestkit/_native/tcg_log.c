/* Check the records of a TCG event log and get the offsets of their parts (TCG PC Client Platform
 * Firmware Profile, 10.2; for CCELs, the CC measurement protocol of the UEFI specification). The
 * formats are: crypto-agile TPM logs, TPM logs in the SHA-1 format, and CCELs. */
#include "ak_log.h"

#include "ak_cursor.h"

#include <string.h>

#define EV_NO_ACTION 3
#define RUNTIME_EVENT 0x08000001 /* requires a name, which a CCEL does not have */
#define ALG_SHA384 0x000c
#define NO_INDEX 0xffffffff
#define LAST_REGISTER 4 /* CCEL index of RTMR3 */
#define LAST_PCR 23
#define MAX_DIGEST 64

/* A log that is being checked: its bytes, the position, and its format. */
typedef struct {
    const uint8_t *start;
    ak_cursor at;
    bool ccel;
    ak_log *log;
} walk;

static uint32_t offset_of(const walk *w, const uint8_t *p)
{
    return (uint32_t)(p - w->start);
}

static ak_status fail(walk *w, const uint8_t *where, ak_status why)
{
    w->log->at = offset_of(w, where);
    return why;
}

/* Digest size of an algorithm of the TCG Algorithm Registry, else 0. */
static uint32_t known_size(uint16_t algorithm)
{
    switch (algorithm) {
    case 0x0004: /* SHA-1 */
        return 20;
    case 0x000b: /* SHA-256 */
    case 0x0012: /* SM3-256 */
    case 0x0027: /* SHA3-256 */
        return 32;
    case ALG_SHA384:
    case 0x0028: /* SHA3-384 */
        return 48;
    case 0x000d: /* SHA-512 */
    case 0x0029: /* SHA3-512 */
        return 64;
    default:
        return 0;
    }
}

/* Return the index of an algorithm in the header, or the number of algorithms if it is missing. */
static uint32_t bank_of(const ak_log *log, uint16_t algorithm)
{
    uint32_t i = 0;
    while (i < log->bank_count && log->algorithms[i] != algorithm)
        i++;
    return i;
}

/* One algorithm of the header: 2 bytes ID, 2 bytes digest size. */
static ak_status add_bank(walk *w, const uint8_t *p)
{
    ak_log *log = w->log;
    const uint16_t algorithm = ak_le16(p), size = ak_le16(p + 2);
    const uint32_t known = known_size(algorithm);

    if (bank_of(log, algorithm) < log->bank_count)
        return fail(w, p, AK_E_LOG_DUPLICATE);
    if (size == 0 || size > MAX_DIGEST || (known != 0 && size != known))
        return fail(w, p + 2, AK_E_LOG_DIGEST_SIZE);
    log->algorithms[log->bank_count] = algorithm;
    log->digest_sizes[log->bank_count++] = size;
    return AK_OK;
}

/* The Spec ID event, at least 29 bytes, with the algorithms of the log. */
static ak_status spec_id(walk *w, const uint8_t *spec, uint32_t size)
{
    const uint32_t count = ak_le32(spec + 24);

    if (count < 1 || count > AK_LOG_MAX_BANKS || 29 + 4 * count > size)
        return fail(w, spec + 24, AK_E_LOG_HEADER);
    if (29 + 4 * count + spec[28 + 4 * count] != size)
        return fail(w, spec + 28 + 4 * count, AK_E_LOG_HEADER);
    for (uint32_t i = 0; i < count; i++) {
        const ak_status status = add_bank(w, spec + 28 + 4 * i);
        if (status != AK_OK)
            return status;
    }
    if (w->ccel && (count != 1 || w->log->algorithms[0] != ALG_SHA384))
        return fail(w, spec + 28, AK_E_LOG_BANK);
    return AK_OK;
}

/* 4 bytes size, then the event data. */
static ak_status event_data(walk *w, ak_log_record *r)
{
    const uint8_t *size, *data;

    if (!ak_take(&w->at, 4, &size))
        return fail(w, w->at.p, AK_E_LOG_TRUNCATED);
    r->data_size = ak_le32(size);
    if (r->data_size > AK_LOG_MAX_EVENT)
        return fail(w, size, AK_E_LOG_EVENT_SIZE);
    if (!ak_take(&w->at, r->data_size, &data))
        return fail(w, w->at.p, AK_E_LOG_TRUNCATED);
    r->data = offset_of(w, data);
    return AK_OK;
}

/* Valid register indexes of a record; index 0 of a CCEL is MRTD, which cannot be extended. */
static bool index_allowed(const walk *w, const ak_log_record *r)
{
    if (w->ccel)
        return r->index <= LAST_REGISTER && (r->index != 0 || r->type == EV_NO_ACTION);
    return r->index <= LAST_PCR || (r->index == NO_INDEX && r->type == EV_NO_ACTION);
}

/* TCG_PCR_EVENT: 4 bytes index, 4 type, 20 digest, then the event data. */
static ak_status old_event(walk *w, ak_log_record *r)
{
    const uint8_t *head;

    if (!ak_take(&w->at, 28, &head))
        return fail(w, w->at.p, AK_E_LOG_TRUNCATED);
    r->offset = offset_of(w, head);
    r->index = ak_le32(head);
    r->type = ak_le32(head + 4);
    r->digests = r->offset + 8;
    r->digest_count = 1;
    if (!index_allowed(w, r))
        return fail(w, head, AK_E_LOG_INDEX);
    return event_data(w, r);
}

/* The digests of a record: 2 bytes algorithm and the digest; each algorithm at most once. */
static ak_status digests(walk *w, const ak_log_record *r)
{
    uint32_t seen = 0;

    for (uint32_t i = 0; i < r->digest_count; i++) {
        const uint8_t *algorithm, *digest;
        if (!ak_take(&w->at, 2, &algorithm))
            return fail(w, w->at.p, AK_E_LOG_TRUNCATED);
        const uint32_t bank = bank_of(w->log, ak_le16(algorithm));
        if (bank == w->log->bank_count)
            return fail(w, algorithm, AK_E_LOG_ALGORITHM);
        if (seen & 1u << bank)
            return fail(w, algorithm, AK_E_LOG_DUPLICATE);
        seen |= 1u << bank;
        if (!ak_take(&w->at, w->log->digest_sizes[bank], &digest))
            return fail(w, w->at.p, AK_E_LOG_TRUNCATED);
    }
    return AK_OK;
}

/* TCG_PCR_EVENT2: 4 bytes index, 4 type, 4 number of digests, the digests, the event data. */
static ak_status event(walk *w, ak_log_record *r)
{
    const uint8_t *head;

    if (!ak_take(&w->at, 12, &head))
        return fail(w, w->at.p, AK_E_LOG_TRUNCATED);
    r->offset = offset_of(w, head);
    r->index = ak_le32(head);
    r->type = ak_le32(head + 4);
    r->digest_count = ak_le32(head + 8);
    r->digests = offset_of(w, w->at.p);
    if (!index_allowed(w, r))
        return fail(w, head, AK_E_LOG_INDEX);
    if (w->ccel && r->type == RUNTIME_EVENT)
        return fail(w, head + 4, AK_E_LOG_RUNTIME);
    if (r->digest_count < 1 || r->digest_count > w->log->bank_count)
        return fail(w, head + 8, AK_E_LOG_DIGEST_COUNT);
    const ak_status status = digests(w, r);
    return status == AK_OK ? event_data(w, r) : status;
}

/* A TPM log ends at the end of the data. A CCEL also ends at an index of all ones, with which OVMF
 * fills the area, or at twelve zeros, as in td-shim; fewer zeros may start a record for MRTD. */
static bool ended(const walk *w)
{
    static const uint8_t zeros[12];
    const size_t left = ak_left(&w->at);

    if (left == 0)
        return true;
    if (!w->ccel)
        return false;
    return (left >= 4 && ak_le32(w->at.p) == NO_INDEX) ||
           (left >= sizeof zeros && memcmp(w->at.p, zeros, sizeof zeros) == 0);
}

/* Parse the first record: a crypto-agile log starts with a Spec ID event, which is informative. */
static ak_status header(walk *w)
{
    static const char signature[16] = "Spec ID Event03";
    ak_log_record first;
    const ak_cursor start = w->at;
    const bool ccel = w->ccel;

    w->ccel = false; /* a header's index is checked below */
    ak_status status = old_event(w, &first);
    w->ccel = ccel;
    if (status != AK_OK)
        return status;
    const uint8_t *data = w->start + first.data;
    if (first.type == EV_NO_ACTION && first.data_size >= 29 && memcmp(data, signature, 16) == 0) {
        w->log->agile = 1;
        if (first.index > (ccel ? 1u : 0u))
            return fail(w, start.p, AK_E_LOG_INDEX);
        return spec_id(w, data, first.data_size);
    }
    if (ccel)
        return fail(w, start.p, AK_E_LOG_HEADER);
    w->at = start;
    return AK_OK;
}

ak_status ak_log_walk(const uint8_t *data, size_t size, int ccel, size_t capacity,
                      ak_log_record *records, ak_log *log)
{
    walk w = {data, {data, data + size}, ccel != 0, log};

    memset(log, 0, sizeof *log);
    if (size > AK_LOG_MAX_SIZE)
        return fail(&w, data, AK_E_LOG_TOO_LONG);
    ak_status status = header(&w);
    while (status == AK_OK && !ended(&w)) {
        if (log->record_count == capacity)
            return fail(&w, w.at.p, AK_E_LOG_TOO_MANY);
        ak_log_record *r = &records[log->record_count];
        status = log->agile ? event(&w, r) : old_event(&w, r);
        if (status != AK_OK)
            break;
        log->record_count++;
        log->extending_count += r->type != EV_NO_ACTION;
    }
    log->end = offset_of(&w, w.at.p);
    return status;
}

void ak_log_columns(const uint8_t *data, const ak_log_record *records, size_t count,
                    uint8_t *registers, uint8_t *digests)
{
    for (const ak_log_record *r = records; r < records + count; r++) {
        if (r->type == EV_NO_ACTION)
            continue;
        *registers++ = (uint8_t)(r->index - 1);
        memcpy(digests, data + r->digests + 2, 48);
        digests += 48;
    }
}
