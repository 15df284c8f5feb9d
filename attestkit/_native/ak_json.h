/* Internal JSON functions, compatible with Python's parser: they parse or skip parts of a text.
 *
 * Each part is accepted, refused, or left to Python's parser, if its result is not certain or not
 * worth the code. If a part is refused, Python's parser refuses every text that starts so. */
#ifndef AK_JSON_H
#define AK_JSON_H

#include <stdbool.h>
#include <string.h>

#include "ak.h"
#include "ak_cursor.h"
#include "ak_hex.h"

/* The text that is being parsed. */
typedef struct {
    ak_cursor at;
    const ak_hex_impl *hex;
    bool ascii; /* whether all strings so far are ASCII */
} ak_json;

/* The content of a string, without quotation marks. */
typedef struct {
    const uint8_t *p;
    size_t size;
    bool escaped;
} ak_json_text;

/* Parse a string, or the rest of it after the opening quotation mark. UTF-8 is not checked here,
 * but by ak_json_utf8. */
ak_json_outcome ak_json_string(ak_json *j, ak_json_text *out);
ak_json_outcome ak_json_string_rest(ak_json *j, ak_json_text *out);

/* Parse a string of an even number of hex digits. Strings with escapes are left. */
ak_json_outcome ak_json_hex(ak_json *j, ak_json_text *out);

/* Parse an integer of at most `max`. One with a minus sign is left, because -0 is 0. An eleventh
 * digit, a decimal point or an exponent is refused as the text that follows the integer. */
ak_json_outcome ak_json_number(ak_json *j, uint32_t max, uint32_t *out);

/* Skip any value of at most AK_JSON_MAX_DEPTH levels. Numbers that may exceed Python's limit for
 * integer conversion, which users can change, are left. */
enum { AK_JSON_MAX_DEPTH = 198 };
ak_json_outcome ak_json_value(ak_json *j);

/* Decode a string with escapes to UTF-8, which is not longer than the string. Returns the size in
 * bytes, or SIZE_MAX if there is a lone surrogate. */
size_t ak_json_unescape(const ak_json *j, const ak_json_text *text, uint8_t *out);

/* Return whether bytes are valid UTF-8 (RFC 3629). */
bool ak_json_utf8(const uint8_t *p, size_t size);

/* Return the offset of the first bracket nested deeper than `most` levels, or -1. Brackets in
 * strings are ignored. The text may be invalid JSON, and strings may be unterminated. */
int64_t ak_json_depth(const uint8_t *text, size_t size, uint32_t most);

/* Parse an integer of at most `max` and ten digits; return false if it is missing. */
static inline bool ak_json_digits(ak_cursor *c, uint32_t max, uint32_t *out)
{
    const uint8_t *start = c->p;
    uint64_t value = 0;

    while (ak_left(c) && c->p - start < 10 && *c->p >= '0' && *c->p <= '9')
        value = 10 * value + (uint64_t)(*c->p++ - '0');
    if (c->p == start || value > max || (*start == '0' && c->p - start > 1))
        return false;
    *out = (uint32_t)value;
    return true;
}

static inline void ak_json_skip_blanks(ak_json *j)
{
    ak_cursor *c = &j->at;
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' || *c->p == '\r' || *c->p == '\t'))
        c->p++;
}

/* Skip a character, if it is next, and white space before it. */
static inline bool ak_json_eat(ak_json *j, char wanted)
{
    ak_json_skip_blanks(j);
    return ak_fixed(&j->at, &wanted, 1);
}

#endif
