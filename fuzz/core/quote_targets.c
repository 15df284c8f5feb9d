/* Quotes, one and many. What is said of many must be what is said of each of them alone. */
#include <string.h>

#include "ak_quote.h"
#include "targets.h"

/* Parts are inside the quote, one behind the other; and a quote is all that it needs to be one. */
static void see_that_it_is_one(const uint8_t *data, const ak_quote *q)
{
    ak_quote again;

    fuzz_never(q->body_size != 384 && q->body_size != 584 && q->body_size != 648);
    fuzz_never(q->body + q->body_size + 4 != q->signature);
    fuzz_never(q->signature + 128 > q->qe_report || q->qe_report + 450 != q->qe_auth_data);
    fuzz_never(q->qe_auth_data + q->qe_auth_data_size + 6 != q->certification);
    fuzz_never(q->certification > q->end);
    fuzz_never(ak_quote_walk(data, q->end, &again) != AK_OK || again.end != q->end);
    fuzz_never(ak_quote_walk(data, q->end - 1, &again) == AK_OK);
}

uint64_t fuzz_quote(const uint8_t *data, size_t size)
{
    ak_quote found;
    const ak_status status = ak_quote_walk(data, size, &found);

    if (status != AK_OK) {
        fuzz_never(found.at > size);
        return fuzz_add_number(fuzz_add_number(FUZZ_START, status), found.at);
    }
    fuzz_never(found.end > size);
    found.at = 0;
    see_that_it_is_one(data, &found);
    return fuzz_add(FUZZ_START, &found, sizeof found);
}

/* What is known of other quotes must not change what is said of one. */
static ak_status walk_both(const uint8_t *data, size_t size, ak_bindings *known)
{
    ak_quote alone, among;
    const ak_status status = ak_quote_walk(data, size, &alone);

    fuzz_never(ak_quote_walk_among(data, size, known, &among, NULL) != status);
    if (status != AK_OK)
        fuzz_never(alone.at != among.at);
    else
        fuzz_never(alone.end != among.end || alone.certification != among.certification);
    return status;
}

/* Take so much from a number of two or four bytes. */
static void lower(uint8_t *p, size_t bytes, size_t by)
{
    const size_t number = (bytes == 2 ? ak_le16(p) : ak_le32(p)) - by;
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(number >> 8 * i);
}

/* The same quote without the last bytes of its authentication data has another binding, which is
 * the same as far as it goes: it must not pass for the known one. */
static void see_shorter_binding(const uint8_t *data, const ak_quote *q, size_t by,
                                ak_bindings *known)
{
    const size_t end = q->qe_auth_data + q->qe_auth_data_size, size = q->end - by;

    if (by == 0 || by > q->qe_auth_data_size)
        return;
    uint8_t *shorter = fuzz_room(size);
    memcpy(shorter, data, end - by);
    memcpy(shorter + end - by, data + end, q->end - end);
    lower(shorter + q->signature - 4, 4, by);
    lower(shorter + q->qe_auth_data - 2, 2, by);
    if (data[0] != 3)
        lower(shorter + q->signature + 130, 4, by);
    fuzz_never(walk_both(shorter, size, known) != AK_E_QE_BINDING);
    free(shorter);
}

/* Four bytes: where another quote differs, by what, and how many zeros are behind it; the quote. */
uint64_t fuzz_among(const uint8_t *data, size_t size)
{
    ak_bindings known;
    ak_quote first;
    size_t next = 0;

    if (size < 5)
        return FUZZ_START;
    const uint8_t *quote = data + 4;
    const size_t one = size - 4, both = 2 * one + data[3];
    uint8_t *two = fuzz_room(both), *other = fuzz_room(both - one);

    memcpy(other, quote, one);
    memset(other + one, 0, data[3]);
    other[ak_le16(data) % one] ^= data[2];
    memcpy(two, quote, one);
    memcpy(two + one, other, both - one);
    memset(&known, 0, sizeof known);
    const ak_status status = walk_both(quote, one, &known);
    if (status == AK_OK && ak_quote_walk(quote, one, &first) == AK_OK)
        see_shorter_binding(quote, &first, data[2], &known);
    uint64_t sum = fuzz_add_number(FUZZ_START, status);
    sum = fuzz_add_number(sum, walk_both(other, both - one, &known));
    const ak_status with_next = ak_quote_walk_among(two, both, &known, &first, &next);
    if (status == AK_OK && other[0] != 0)
        fuzz_never(with_next != AK_OK || next != one);
    sum = fuzz_add_number(sum, with_next);
    free(two);
    free(other);
    return sum;
}

/* Where a row's quote ends, with the zeros behind it. */
static size_t end_of(size_t size, const ak_quote_rows *rows, size_t row)
{
    return row + 1 < rows->count ? rows->starts[row + 1] : size;
}

/* A column of checked rows has what each quote has, or zeros where its body ends before. */
static void see_column(const uint8_t *data, const ak_quote_rows *rows, size_t at, size_t width,
                       const uint8_t *column)
{
    static const uint8_t zeros[64];

    for (size_t row = 0; row < rows->count; row++) {
        const uint8_t *quote = data + rows->starts[row];
        const uint8_t *body = quote + (rows->versions[row] == 5 ? 54 : 48);
        const bool there = at < 584 || rows->body_types[row] == 3;
        fuzz_never(memcmp(column + row * width, there ? body + at : zeros, width) != 0);
    }
}

/* Gather a field of each width, and the four registers. */
static uint64_t gathered(const uint8_t *data, size_t size, const ak_quote_rows *rows)
{
    static const size_t fields[][2] = {{0, 16},   {16, 48},  {112, 8},
                                       {520, 64}, {584, 16}, {600, 48}};
    uint8_t *column = fuzz_room(192 * rows->count);
    uint64_t sum = FUZZ_START;

    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const size_t at = fields[i][0], width = fields[i][1];
        fuzz_never(!ak_quote_column(data, size, rows, at, width, column));
        see_column(data, rows, at, width, column);
        sum = fuzz_add(sum, column, width * rows->count);
    }
    fuzz_never(!ak_quote_four_columns(data, size, rows, 328, column));
    for (size_t i = 0; i < 4; i++)
        see_column(data, rows, 328 + 48 * i, 48, column + 48 * rows->count * i);
    sum = fuzz_add(sum, column, 192 * rows->count);
    free(column);
    return sum;
}

/* Each of the rows is a quote of a TD by itself, of the version and the body that they say. */
static void see_rows(const uint8_t *data, size_t size, const ak_quote_rows *rows)
{
    ak_quote quote;

    for (size_t row = 0; row < rows->count; row++) {
        const uint8_t *start = data + rows->starts[row];
        const size_t length = end_of(size, rows, row) - rows->starts[row];
        fuzz_never(ak_quote_walk(start, length, &quote) != AK_OK || start[4] != 0x81);
        fuzz_never(rows->versions[row] != start[0]);
        fuzz_never(rows->body_types[row] != (quote.body_size == 648 ? 3 : 2));
    }
}

static ak_quote_rows room_of(size_t count)
{
    return (ak_quote_rows){fuzz_room(count * sizeof(uint64_t)), fuzz_room(count), fuzz_room(count),
                           count};
}

static void free_rows(const ak_quote_rows *rows)
{
    free(rows->starts);
    free(rows->versions);
    free(rows->body_types);
}

/* Quotes one behind the other, found and then told where they are. */
uint64_t fuzz_columns(const uint8_t *data, size_t size)
{
    ak_quote_rows rows = room_of(size / AK_QUOTE_TD_MIN_SIZE);
    ak_quote_place place;
    ak_status status = ak_quote_rows_found(data, size, &rows, &place);
    uint64_t sum = fuzz_add_number(FUZZ_START, status);

    if (status == AK_OK) {
        see_rows(data, size, &rows);
        const uint64_t found = gathered(data, size, &rows);
        status = ak_quote_rows_given(data, size, &rows, &place);
        fuzz_never(status != AK_OK || gathered(data, size, &rows) != found);
        sum = fuzz_add_number(sum, found);
    } else {
        fuzz_never(place.at > size);
        sum = fuzz_add_number(fuzz_add_number(sum, place.row), place.at);
    }
    free_rows(&rows);
    return sum;
}

/* What is to be said of starts that are given: the first that is misplaced, else the first quote
 * that is refused. */
static ak_status expected(const uint8_t *data, size_t size, const ak_quote_rows *rows,
                          ak_quote_place *place)
{
    for (size_t row = 0; row < rows->count; row++)
        if (rows->starts[row] >= size || (row > 0 && rows->starts[row] <= rows->starts[row - 1])) {
            *place = (ak_quote_place){row, rows->starts[row]};
            return AK_E_OFFSETS;
        }
    for (size_t row = 0; row < rows->count; row++) {
        const size_t start = rows->starts[row];
        ak_quote quote;
        ak_status status = ak_quote_walk(data + start, end_of(size, rows, row) - start, &quote);
        if (status == AK_OK && data[start + 4] == 0) {
            status = AK_E_ENCLAVE;
            quote.at = 4;
        }
        if (status != AK_OK) {
            *place = (ak_quote_place){row, start + quote.at};
            return status;
        }
    }
    return AK_OK;
}

/* A field of rows that nobody may have checked: it is gathered from inside the data, or not. */
static uint64_t any_column(const uint8_t *data, size_t size, const ak_quote_rows *rows, size_t at,
                           size_t width)
{
    uint8_t *column = fuzz_room(width * rows->count), *four = fuzz_room(192 * rows->count);
    uint64_t sum = FUZZ_START;

    if (ak_quote_column(data, size, rows, at, width, column)) {
        fuzz_never(rows->count != 0 && at + width > AK_QUOTE_TD_BODY_SIZE);
        sum = fuzz_add(sum, column, width * rows->count);
    }
    if (ak_quote_four_columns(data, size, rows, at, four))
        sum = fuzz_add(sum, four, 192 * rows->count);
    free(column);
    free(four);
    return sum;
}

/* One byte: how many quotes; two bytes each: a field, and its width; four bytes each: where quotes
 * start; then the quotes. */
uint64_t fuzz_rows(const uint8_t *data, size_t size)
{
    const size_t count = size == 0 ? 0 : data[0] % 17, head = 5 + 4 * count;
    ak_quote_place place = {0, 0}, right = {0, 0};

    if (size < head)
        return FUZZ_START;
    const size_t at = ak_le16(data + 1), width = ak_le16(data + 3) % 700, left = size - head;
    const uint8_t *quotes = data + head;
    ak_quote_rows rows = room_of(count);
    for (size_t i = 0; i < count; i++) {
        rows.starts[i] = ak_le32(data + 5 + 4 * i);
        rows.versions[i] = data[5 + 4 * i]; /* any, as long as nobody has checked */
        rows.body_types[i] = 2;
    }
    uint64_t sum = any_column(quotes, left, &rows, at, width);
    const ak_status status = ak_quote_rows_given(quotes, left, &rows, &place);
    fuzz_never(status != expected(quotes, left, &rows, &right));
    if (status != AK_OK) {
        fuzz_never(place.row != right.row || place.at != right.at);
        sum = fuzz_add_number(fuzz_add_number(sum, place.row), place.at);
    } else {
        see_rows(quotes, left, &rows);
        sum = fuzz_add_number(sum, gathered(quotes, left, &rows));
        sum = fuzz_add_number(sum, any_column(quotes, left, &rows, at, width));
    }
    free_rows(&rows);
    return fuzz_add_number(sum, status);
}
