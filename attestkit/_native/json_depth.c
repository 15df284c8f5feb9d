/* The nesting depth of JSON brackets. Strings are skipped with memchr, because most bytes of logs
 * and evidence are hex in strings. */
#include "ak_json.h"

#include <string.h>

/* Return the end of the string whose content starts at `from`: after its quotation mark, or
 * `end`. */
static const uint8_t *behind_string(const uint8_t *from, const uint8_t *end)
{
    for (const uint8_t *p = from; p < end; p++) {
        if ((p = memchr(p, '"', (size_t)(end - p))) == NULL)
            break;
        /* A byte is examined at most twice: a run of backslashes precedes one mark only. */
        const uint8_t *run = p;
        while (run > from && run[-1] == '\\')
            run--;
        if ((p - run) % 2 == 0)
            return p + 1;
    }
    return end;
}

int64_t ak_json_depth(const uint8_t *text, size_t size, uint32_t most)
{
    const uint8_t *p = text, *end = text + size;
    int64_t depth = 0;

    while (p < end) {
        switch (*p++) {
        case '[':
        case '{':
            if (++depth > most)
                return p - 1 - text;
            break;
        case ']':
        case '}':
            depth--; /* may become negative: the parser refuses an unmatched bracket */
            break;
        case '"':
            p = behind_string(p, end);
            break;
        case '\\': /* invalid outside of strings; an escaped mark does not start a string */
            if (p < end && (*p == '"' || *p == '\\'))
                p++;
            break;
        default:
            break;
        }
    }
    return -1;
}
