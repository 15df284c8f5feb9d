/* JSON inside the core, as Python's parser reads it: pieces of text that are passed over or read.
 *
 * Each piece is accepted, refused, or left to Python, where what Python would say is not certain
 * or not worth the code. A text that is refused here Python refuses, whatever follows the piece. */
#ifndef AK_JSON_H
#define AK_JSON_H

#include <stdbool.h>
#include <string.h>

#include "ak.h"
#include "ak_cursor.h"
#include "ak_hex.h"

/* Text being read. */
typedef struct {
    ak_cursor at;
    const ak_hex_impl *hex;
    bool ascii; /* no other character was in a string so far */
} ak_json;

/* What is between the quotes of a string. */
typedef struct {
    const uint8_t *p;
    size_t size;
    bool escaped;
} ak_json_text;

/* Read a string, or what follows its opening quote. Whether it is UTF-8 is for ak_json_utf8. */
ak_json_outcome ak_json_string(ak_json *j, ak_json_text *out);
ak_json_outcome ak_json_string_rest(ak_json *j, ak_json_text *out);

/* Read a string of an even number of hex digits. One with escapes is left. */
ak_json_outcome ak_json_hex(ak_json *j, ak_json_text *out);

/* Read a whole number of at most `max`. One with a minus is left: -0 is a whole number, and 0. What
 * makes it another number, an eleventh digit, a point, an exponent, is not what may follow it. */
ak_json_outcome ak_json_number(ak_json *j, uint32_t max, uint32_t *out);

/* Pass over any value of at most AK_JSON_MAX_DEPTH levels. A number that is too long for Python to
 * convert, as its user may have set it, is left. */
enum { AK_JSON_MAX_DEPTH = 198 };
ak_json_outcome ak_json_value(ak_json *j);

/* Write what a string with escapes stands for, as UTF-8, which takes no more bytes than the string.
 * SIZE_MAX where that has a lone surrogate, else how many bytes it is. */
size_t ak_json_unescape(const ak_json *j, const ak_json_text *text, uint8_t *out);

/* Tell whether bytes are UTF-8 (RFC 3629). */
bool ak_json_utf8(const uint8_t *p, size_t size);

/* Find the first bracket that nests deeper than `most` levels: its offset, or -1. Those in strings
 * do not count. The text need not be JSON, and a string may lack its end. */
int64_t ak_json_depth(const uint8_t *text, size_t size, uint32_t most);

/* Take these very characters. */
static inline bool ak_json_fixed(ak_cursor *c, const char *wanted, size_t size)
{
    if (ak_left(c) < size || memcmp(c->p, wanted, size) != 0)
        return false;
    c->p += size;
    return true;
}
#define AK_JSON_FIXED(cursor, literal) ak_json_fixed(cursor, literal, sizeof(literal) - 1)

/* Read a whole number of at most `max`, of ten digits at most; false where it is none. */
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

/* Take one character, with blanks before it or not. */
static inline bool ak_json_eat(ak_json *j, char wanted)
{
    ak_json_skip_blanks(j);
    return ak_json_fixed(&j->at, &wanted, 1);
}

#endif
