/* Internal interface of tcg_log.c: the records of a TCG log, and the registers they extend. */
#ifndef AK_LOG_H
#define AK_LOG_H

#include "ak.h"

/* Limits: algorithms in a header, bytes of event data, records, bytes of a log. */
enum {
    AK_LOG_MAX_BANKS = 16,
    AK_LOG_MAX_EVENT = 1048576,
    AK_LOG_MAX_RECORDS = 65536,
    AK_LOG_MAX_SIZE = 16777216
};

/* One record of a TCG log. Offsets are in bytes from the start of the log. */
typedef struct {
    uint32_t offset;
    uint32_t index; /* PCR index; in a CCEL, number of the RTMR plus one */
    uint32_t type;
    uint32_t digests;      /* offset: algorithm ID and digest of each, or one SHA-1 digest */
    uint32_t digest_count; /* at least 1 */
    uint32_t data;         /* offset of the event data */
    uint32_t data_size;
} ak_log_record;

/* The properties of a TCG log. */
typedef struct {
    uint32_t at;         /* offset of the error, if the log is malformed */
    uint32_t agile;      /* 1: with the algorithms below; 0: SHA-1 format */
    uint32_t bank_count; /* number of elements of the next two */
    uint16_t algorithms[16];
    uint16_t digest_sizes[16];
    uint32_t record_count;    /* without the header */
    uint32_t extending_count; /* number of records that are not EV_NO_ACTION */
    uint32_t end;             /* end of the last record */
} ak_log;

/* Check a TCG log, a CCEL (`ccel` not 0) or a TPM log, and get the offsets of its records, at most
 * `capacity`. */
ak_status ak_log_walk(const uint8_t *data, size_t size, int ccel, size_t capacity,
                      ak_log_record *records, ak_log *log);

/* Collect the extending records of a CCEL that ak_log_walk checked: a register number, 0 to 3, and
 * a digest of 48 bytes for each of `extending_count` records. */
void ak_log_columns(const uint8_t *data, const ak_log_record *records, size_t count,
                    uint8_t *registers, uint8_t *digests);

#endif
