/* How deep the brackets of JSON nest. Strings are skipped with memchr: in logs and evidence nearly
 * all bytes are hex inside strings. */
#include "ak_json.h"

#include <string.h>

/* Return where the string whose content starts at `from` is over: behind its quote, or at `end`. */
static const uint8_t *behind_string(const uint8_t *from, const uint8_t *end)
{
    for (const uint8_t *p = from; p < end; p++) {
        if ((p = memchr(p, '"', (size_t)(end - p))) == NULL)
            break;
        /* A run of backslashes has one quote behind it, so no byte is looked at a third time. */
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
            depth--; /* below zero too: what closes nothing is the parser's to refuse */
            break;
        case '"':
            p = behind_string(p, end);
            break;
        case '\\': /* no JSON out here; a quote behind it starts no string all the same */
            if (p < end && (*p == '"' || *p == '\\'))
                p++;
            break;
        default:
            break;
        }
    }
    return -1;
}
