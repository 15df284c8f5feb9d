/* Internal interface of quote.c and quote_columns.c: checks of many quotes, several of which may be
 * from the same machine, and columns of their fields. */
#ifndef AK_QUOTE_H
#define AK_QUOTE_H

#include <stdbool.h>
#include <string.h>

#include "ak.h"
#include "ak_cursor.h"

/* An attestation key with its authentication data, and the QE report data that certify it. */
typedef struct {
    const uint8_t *key;  /* 64 bytes; NULL: unused */
    const uint8_t *auth; /* QE authentication data */
    size_t auth_size;
    const uint8_t *vouched; /* 64 bytes */
} ak_binding;

/* Cache of valid bindings by the first byte of the key, initialised with zeros. Quotes of a machine
 * have the same binding until its QE creates a new key, so most quotes of a batch need no hash;
 * comparing takes a tenth of the time. */
typedef struct {
    ak_binding by_key[256];
} ak_bindings;

/* As ak_quote_walk, with a cache of bindings, to which a valid binding is added. If next is not
 * NULL, other quotes may follow: the quote then ends as its own lengths say, and *next becomes the
 * end of its zero padding. */
ak_status ak_quote_walk_among(const uint8_t *data, size_t size, ak_bindings *known, ak_quote *quote,
                              size_t *next);

/* Sixteen bytes, in a vector register if available, for comparisons only. */
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

/* Return the first non-zero byte from p on, or end. */
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

/* Minimum size of a TD quote, and maximum size of its body, in bytes. */
enum { AK_QUOTE_TD_MIN_SIZE = 1226, AK_QUOTE_TD_BODY_SIZE = 648 };

/* Offsets, versions and body types of checked TD quotes, which determine the offsets of fields. */
typedef struct {
    uint64_t *starts;
    uint8_t *versions;   /* 4 or 5 */
    uint8_t *body_types; /* 2: TDX 1.0, always in version 4; 3: TDX 1.5 */
    size_t count;
} ak_quote_rows;

/* Position of an error: number of the quote, and offset in the data. */
typedef struct {
    size_t row;
    size_t at;
} ak_quote_place;

/* Check the quotes at the offsets in rows, and set versions and body types. A quote, with optional
 * zero padding, ends at the next offset, the last at `size`. On error, *place becomes that of the
 * first invalid offset or, if all are valid, of the first malformed quote. */
ak_status ak_quote_rows_given(const uint8_t *data, size_t size, const ak_quote_rows *rows,
                              ak_quote_place *place);

/* The same for contiguous quotes with optional zero padding. rows must have space for
 * size / AK_QUOTE_TD_MIN_SIZE quotes; their number is set. */
ak_status ak_quote_rows_found(const uint8_t *data, size_t size, ak_quote_rows *rows,
                              ak_quote_place *place);

/* Copy a field of all quotes into a contiguous column: 8, 16, 48 or 64 bytes at offset `at` of the
 * body; zeros if a body is shorter. Returns false if rows do not match the data. */
bool ak_quote_column(const uint8_t *data, size_t size, const ak_quote_rows *rows, size_t at,
                     size_t width, uint8_t *column);

/* The same for four adjacent fields of 48 bytes, which all bodies have, into four concatenated
 * columns. */
bool ak_quote_four_columns(const uint8_t *data, size_t size, const ak_quote_rows *rows, size_t at,
                           uint8_t *columns);

#endif
