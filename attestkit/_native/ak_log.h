/* What tcg_log.c has for the other files: the records of a TCG log, and what they extend. */
#ifndef AK_LOG_H
#define AK_LOG_H

#include "ak.h"

/* Bounds of a log: algorithms in a header, bytes of one event, records, bytes in all. */
enum {
    AK_LOG_MAX_BANKS = 16,
    AK_LOG_MAX_EVENT = 1048576,
    AK_LOG_MAX_RECORDS = 65536,
    AK_LOG_MAX_SIZE = 16777216
};

/* One record of a TCG log. Offsets are in bytes from the start of the log. */
typedef struct {
    uint32_t offset;
    uint32_t index; /* PCR; in a CCEL number of the RTMR plus one */
    uint32_t type;
    uint32_t digests;      /* offset: 2 bytes algorithm and digest, each; in the old format SHA-1 */
    uint32_t digest_count; /* at least 1 */
    uint32_t data;         /* offset of the event data */
    uint32_t data_size;
} ak_log_record;

/* What holds for a whole TCG log. */
typedef struct {
    uint32_t at;         /* of a refused log: the byte where it breaks */
    uint32_t agile;      /* 1: algorithms as below; 0: the old format, SHA-1 alone */
    uint32_t bank_count; /* how many of the two below */
    uint16_t algorithms[16];
    uint16_t digest_sizes[16];
    uint32_t record_count;    /* without the header */
    uint32_t extending_count; /* of them those that are not EV_NO_ACTION */
    uint32_t end;             /* offset behind the last record */
} ak_log;

/* Check a TCG log, a CCEL (`ccel` not 0) or a TPM's, and tell where its records are. Refuses a log
 * with more than `capacity` records. */
ak_status ak_log_walk(const uint8_t *data, size_t size, int ccel, size_t capacity,
                      ak_log_record *records, ak_log *log);

/* Gather what ak_log_walk found to extend registers in a CCEL: a register number, 0 to 3, and 48
 * bytes of digest for each of `extending_count` records. */
void ak_log_columns(const uint8_t *data, const ak_log_record *records, size_t count,
                    uint8_t *registers, uint8_t *digests);

#endif
