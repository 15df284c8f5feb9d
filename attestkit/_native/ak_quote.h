/* What quote.c and quote_columns.c have for the other files: checking many quotes, of which some
 * are of one machine, and turning their fields into columns. */
#ifndef AK_QUOTE_H
#define AK_QUOTE_H

#include <stdbool.h>
#include <string.h>

#include "ak.h"
#include "ak_cursor.h"

/* An attestation key, and the report data of the QE that vouch for it. */
typedef struct {
    const uint8_t *key;  /* 64 bytes; NULL where there is none yet */
    const uint8_t *auth; /* the authentication data, hashed with the key */
    size_t auth_size;
    const uint8_t *vouched; /* 64 bytes */
} ak_binding;

/* Bindings that were hashed and found good, by the first byte of their key, zeros at first. The
 * quotes of a machine have the same until its QE makes another key, so in a batch most quotes need
 * no hash: comparing takes a tenth of the time. */
typedef struct {
    ak_binding by_key[256];
} ak_bindings;

/* As ak_quote_walk, among quotes whose bindings are known; adds this one's if it is good. Where
 * next is not NULL other quotes may follow: then its own lengths tell where it ends, and *next
 * where the zeros behind it do. */
ak_status ak_quote_walk_among(const uint8_t *data, size_t size, ak_bindings *known, ak_quote *quote,
                              size_t *next);

/* Sixteen bytes in a register where there are such, for words that are only compared. */
typedef uint64_t ak_pair __attribute__((vector_size(16)));

static inline ak_pair ak_load_pair(const uint8_t *p)
{
    ak_pair pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
}

static inline bool ak_is_zero(ak_pair pair)
{
    return (pair[0] | pair[1]) == 0;
}

static inline ak_pair ak_load_64(const uint8_t *p)
{
    return ak_load_pair(p) | ak_load_pair(p + 16) | ak_load_pair(p + 32) | ak_load_pair(p + 48);
}

/* The first byte from p on that is not zero, or end. */
static inline const uint8_t *ak_first_nonzero(const uint8_t *p, const uint8_t *end)
{
    while (end - p >= 64 && ak_is_zero(ak_load_64(p)))
        p += 64;
    while (end - p >= 8 && ak_le64(p) == 0)
        p += 8;
    while (p < end && *p == 0)
        p++;
    return p;
}

/* Bytes of the shortest quote of a TD, and of the longest body. */
enum { AK_QUOTE_TD_MIN_SIZE = 1226, AK_QUOTE_TD_BODY_SIZE = 648 };

/* What is kept of quotes of TDs that were checked; where each field is follows from it. */
typedef struct {
    uint64_t *starts;
    uint8_t *versions;   /* 4 or 5 */
    uint8_t *body_types; /* 2: TDX 1.0, which version 4 has; 3: TDX 1.5 */
    size_t count;
} ak_quote_rows;

/* One of many quotes: its number, and a byte of the data. */
typedef struct {
    size_t row;
    size_t at;
} ak_quote_place;

/* Check the quotes that start where rows say, and fill in the rest of the rows. A quote ends, with
 * or without zeros behind it, where the next one starts, the last at `size`. *place becomes the
 * first to be refused, or before them all the first start that is not behind the one before it and
 * inside the data. */
ak_status ak_quote_rows_given(const uint8_t *data, size_t size, const ak_quote_rows *rows,
                              ak_quote_place *place);

/* The same for quotes that lie one behind the other, with or without zeros between them. There is
 * room for size / AK_QUOTE_TD_MIN_SIZE rows; the count becomes how many there are. */
ak_status ak_quote_rows_found(const uint8_t *data, size_t size, ak_quote_rows *rows,
                              ak_quote_place *place);

/* Gather a field of all quotes: 8, 16, 48 or 64 bytes from `at` on in the body, without gaps; zeros
 * where a body ends before it. False where rows are not of these data. */
bool ak_quote_column(const uint8_t *data, size_t size, const ak_quote_rows *rows, size_t at,
                     size_t width, uint8_t *column);

/* The same for four fields of 48 bytes side by side, which all bodies have. The columns of them
 * follow each other. */
bool ak_quote_four_columns(const uint8_t *data, size_t size, const ak_quote_rows *rows, size_t at,
                           uint8_t *columns);

#endif
