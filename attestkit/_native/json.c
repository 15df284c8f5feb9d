/* Parts of JSON texts (RFC 8259), parsed at least as strictly as by Python's parser. */
#include "ak_json.h"

#define ACCEPTED AK_JSON_ACCEPTED
#define REFUSED AK_JSON_REFUSED
#define LEFT AK_JSON_LEFT

#define MAX_NUMBER 640 /* digits: the lowest limit that users of Python can set */

/* Return whether eight bytes contain the end of a plain run of a string: a quotation mark, a
 * backslash or a control character. */
static bool ends(uint64_t bytes)
{
    const uint64_t ones = 0x0101010101010101;
    const uint64_t quote = bytes ^ '"' * ones, backslash = bytes ^ '\\' * ones;
    const uint64_t below = ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) |
                           ((bytes - ' ' * ones) & ~bytes);
    return (below & 0x80 * ones) != 0;
}

/* Skip the plain run of a string. */
static void plain_run(ak_json *j)
{
    ak_cursor *c = &j->at;
    uint64_t all = 0, eight;

    for (; ak_left(c) >= 8; c->p += 8) {
        memcpy(&eight, c->p, 8);
        if (ends(eight))
            break;
        all |= eight;
    }
    for (; c->p < c->end && *c->p >= ' ' && *c->p != '"' && *c->p != '\\'; c->p++)
        all |= *c->p;
    if (all & 0x8080808080808080)
        j->ascii = false;
}

static const char escaped[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";

/* Skip an escape sequence. */
static bool escape(ak_json *j)
{
    const uint8_t *p;

    if (!ak_take(&j->at, 2, &p))
        return false;
    if (p[1] != 'u')
        return memchr(escaped, p[1], sizeof escaped - 1) != NULL;
    return ak_take(&j->at, 4, &p) && j->hex->span(p, 4) == 4;
}

ak_json_outcome ak_json_string_rest(ak_json *j, ak_json_text *out)
{
    out->p = j->at.p;
    out->escaped = false;
    for (;;) {
        plain_run(j);
        out->size = (size_t)(j->at.p - out->p);
        if (AK_FIXED(&j->at, "\""))
            return ACCEPTED;
        if (ak_left(&j->at) == 0 || *j->at.p != '\\' || !escape(j))
            return REFUSED;
        out->escaped = true;
    }
}

ak_json_outcome ak_json_string(ak_json *j, ak_json_text *out)
{
    return ak_json_eat(j, '"') ? ak_json_string_rest(j, out) : REFUSED;
}

ak_json_outcome ak_json_hex(ak_json *j, ak_json_text *out)
{
    if (!ak_json_eat(j, '"'))
        return REFUSED;
    out->p = j->at.p;
    out->size = j->hex->span(j->at.p, ak_left(&j->at));
    out->escaped = false;
    j->at.p += out->size;
    if (ak_left(&j->at) && *j->at.p == '\\')
        return LEFT;
    return AK_FIXED(&j->at, "\"") && out->size % 2 == 0 ? ACCEPTED : REFUSED;
}

ak_json_outcome ak_json_number(ak_json *j, uint32_t max, uint32_t *out)
{
    ak_json_skip_blanks(j);
    if (ak_left(&j->at) && *j->at.p == '-')
        return LEFT;
    return ak_json_digits(&j->at, max, out) ? ACCEPTED : REFUSED;
}

/* Skip decimal digits; return false if the first is missing. */
static bool some_digits(ak_cursor *c)
{
    const uint8_t *start = c->p;
    while (ak_left(c) && *c->p >= '0' && *c->p <= '9')
        c->p++;
    return c->p > start;
}

/* Skip a number. */
static ak_json_outcome any_number(ak_json *j)
{
    const uint8_t *start = j->at.p;

    (void)AK_FIXED(&j->at, "-");
    if (!AK_FIXED(&j->at, "0") && !some_digits(&j->at))
        return REFUSED;
    if (AK_FIXED(&j->at, ".") && !some_digits(&j->at))
        return REFUSED;
    if (AK_FIXED(&j->at, "e") || AK_FIXED(&j->at, "E")) {
        if (!AK_FIXED(&j->at, "+"))
            (void)AK_FIXED(&j->at, "-");
        if (!some_digits(&j->at))
            return REFUSED;
    }
    return j->at.p - start > MAX_NUMBER ? LEFT : ACCEPTED;
}

/* Skip a value that is not an array or an object. */
static ak_json_outcome scalar(ak_json *j)
{
    ak_json_text any;

    if (ak_json_eat(j, '"'))
        return ak_json_string_rest(j, &any);
    if (AK_FIXED(&j->at, "true") || AK_FIXED(&j->at, "false") || AK_FIXED(&j->at, "null"))
        return ACCEPTED;
    return any_number(j);
}

/* Skip the name of a member and its colon. */
static ak_json_outcome name(ak_json *j)
{
    ak_json_text any;

    return ak_json_string(j, &any) == ACCEPTED && ak_json_eat(j, ':') ? ACCEPTED : REFUSED;
}

ak_json_outcome ak_json_value(ak_json *j)
{
    char closing[AK_JSON_MAX_DEPTH]; /* closing brackets of the open containers, innermost last */
    size_t depth = 0;

    for (;;) {
        ak_json_outcome outcome;
        const bool array = ak_json_eat(j, '['), object = !array && ak_json_eat(j, '{');
        if (array || object) {
            if (depth == AK_JSON_MAX_DEPTH)
                return REFUSED;
            closing[depth++] = array ? ']' : '}';
            if (!ak_json_eat(j, closing[depth - 1])) { /* the container is not empty */
                if (object && name(j) != ACCEPTED)
                    return REFUSED;
                continue;
            }
            depth--;
        } else if ((outcome = scalar(j)) != ACCEPTED) {
            return outcome;
        }
        while (depth > 0 && ak_json_eat(j, closing[depth - 1]))
            depth--;
        if (depth == 0)
            return ACCEPTED;
        if (!ak_json_eat(j, ',') || (closing[depth - 1] == '}' && name(j) != ACCEPTED))
            return REFUSED;
    }
}

/* Return the 16-bit value of four hex digits. */
static uint32_t four_digits(const ak_json *j, const uint8_t *p)
{
    uint8_t two[2];
    (void)j->hex->decode(p, 4, two);
    return (uint32_t)two[0] << 8 | two[1];
}

static uint8_t *put_utf8(uint8_t *out, uint32_t code)
{
    if (code < 0x80) {
        *out++ = (uint8_t)code;
        return out;
    }
    if (code < 0x800) {
        *out++ = (uint8_t)(0xc0 | code >> 6);
    } else {
        if (code < 0x10000) {
            *out++ = (uint8_t)(0xe0 | code >> 12);
        } else {
            *out++ = (uint8_t)(0xf0 | code >> 18);
            *out++ = (uint8_t)(0x80 | (code >> 12 & 0x3f));
        }
        *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    }
    *out++ = (uint8_t)(0x80 | (code & 0x3f));
    return out;
}

size_t ak_json_unescape(const ak_json *j, const ak_json_text *text, uint8_t *out)
{
    const uint8_t *p = text->p, *end = p + text->size, *start = out;

    while (p < end) {
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        if (p[1] != 'u') {
            const char *found = memchr(escaped, p[1], sizeof escaped - 1);
            *out++ = (uint8_t)meant[found - escaped];
            p += 2;
            continue;
        }
        uint32_t code = four_digits(j, p + 2);
        p += 6;
        if (code >> 11 == 0x1b) { /* 0xd800 to 0xdfff */
            const bool two = end - p >= 6 && p[0] == '\\' && p[1] == 'u';
            const uint32_t low = two ? four_digits(j, p + 2) : 0;
            if (code >= 0xdc00 || low >> 10 != 0x37)
                return SIZE_MAX;
            code = 0x10000 + ((code & 0x3ff) << 10 | (low & 0x3ff));
            p += 6;
        }
        out = put_utf8(out, code);
    }
    return (size_t)(out - start);
}

/* Return the size in bytes of the UTF-8 character that starts here, or 0 if it is invalid. */
static size_t character(const uint8_t *p, size_t left)
{
    const size_t size = *p < 0x80 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t code = size == 1 ? *p : *p & (0xffU >> (size + 1));

    if (size > left || (*p >= 0x80 && *p < 0xc0) || *p >= 0xf8)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if (p[i] >> 6 != 2)
            return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    return code < least[size] || code >> 11 == 0x1b || code > 0x10ffff ? 0 : size;
}

bool ak_json_utf8(const uint8_t *p, size_t size)
{
    for (size_t at = 0, more; at < size; at += more) {
        uint64_t eight = ~0ULL;
        if (size - at >= sizeof eight)
            memcpy(&eight, p + at, sizeof eight);
        more = sizeof eight; /* most text is ASCII */
        if ((eight & 0x8080808080808080) != 0 && (more = character(p + at, size - at)) == 0)
            return false;
    }
    return true;
}
