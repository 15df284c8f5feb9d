/* Evidence of a TD in msgpack, wire version 1, with the keys of maps in the order of guest agents.
 * Quote and report data are arrays of integers. */
#include "ak_evidence.h"

enum { U8 = 0xcc };

static bool big_endian(ak_cursor *c, size_t size, uint32_t *value)
{
    const uint8_t *p;
    if (!ak_take(c, size, &p))
        return false;
    *value = 0;
    for (size_t i = 0; i < size; i++)
        *value = *value << 8 | p[i];
    return true;
}

/* Get a size whose head is `first` for one byte, and the next two for two and four bytes. */
static bool sized(ak_cursor *c, uint8_t head, uint8_t first, uint32_t *size)
{
    return head >= first && head <= first + 2 && big_endian(c, (size_t)1 << (head - first), size);
}

static bool integer(ak_cursor *c, uint32_t *value)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p))
        return false;
    *value = *p;
    return *p < 0x80 || sized(c, *p, U8, value);
}

static bool blob(ak_cursor *c, ak_part *part)
{
    const uint8_t *p;
    uint32_t size;
    if (!ak_take(c, 1, &p) || !sized(c, *p, 0xc4, &size) || !ak_take(c, size, &part->p))
        return false;
    part->size = size;
    return true;
}

static bool text(ak_cursor *c, ak_part *part)
{
    const uint8_t *p;
    uint32_t size;
    if (!ak_take(c, 1, &p))
        return false;
    if ((*p & 0xe0) == 0xa0)
        size = *p & 0x1f;
    else if (!sized(c, *p, 0xd9, &size))
        return false;
    part->size = size;
    return ak_take(c, size, &part->p);
}

static bool count(ak_cursor *c, uint32_t *items)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p))
        return false;
    if ((*p & 0xf0) == 0x90)
        *items = *p & 0x0f;
    else if (!(*p == 0xdc ? big_endian(c, 2, items) : *p == 0xdd && big_endian(c, 4, items)))
        return false;
    return *items <= ak_left(c);
}

static bool events(ak_cursor *c, uint32_t *items)
{
    return count(c, items) && *items <= AK_EVIDENCE_MAX_ITEMS;
}

/* Return whether the next eight bytes are integers of one byte each. Most of a quote is text. */
static bool are_short(const uint8_t *p)
{
    uint64_t eight;
    memcpy(&eight, p, sizeof eight);
    return (eight & 0x8080808080808080) == 0;
}

/* Skip an array of integers below 256 in their shortest form. */
static bool integers(ak_cursor *c, ak_part *part)
{
    uint32_t items;
    if (!count(c, &items))
        return false;
    const uint8_t *p = c->p, *const end = c->end;
    *part = (ak_part){p, items};
    while (items > 0) {
        if (items >= 8 && end - p >= 8 && are_short(p)) {
            p += 8;
            items -= 8;
            continue;
        }
        const size_t longer = p < end && *p == U8;
        if ((size_t)(end - p) <= longer || p[longer] >> 7 != longer)
            return false;
        p += 1 + longer;
        items--;
    }
    c->p = p;
    return true;
}

static void decode(ak_part encoded, uint8_t *bytes)
{
    const uint8_t *p = encoded.p;
    for (uint8_t *const end = bytes + encoded.size; bytes < end;) {
        if (end - bytes >= 8 && are_short(p)) {
            memcpy(bytes, p, 8);
            bytes += 8;
            p += 8;
        } else {
            p += *p == U8;
            *bytes++ = *p++;
        }
    }
}

static bool begin(ak_cursor *c, ak_td_evidence *td)
{
    return AK_FIXED(c, "\x83\xa7version\x01\xa8platform\x82\xa4kind\xa3tdx\xa4"
                       "data\x82\xa5quote") &&
           integers(c, &td->quote) &&
           AK_FIXED(c, "\xa9"
                       "event_log") &&
           events(c, &td->events);
}

/* Get the optional members `version` and, in events of the log, `preimage`. */
static bool optional(ak_cursor *c, unsigned members, bool is_runtime, ak_wire_event *e)
{
    e->version = 1;
    e->preimage.p = NULL;
    if (members > 0 && AK_FIXED(c, "\xa7version")) {
        if (!integer(c, &e->version) || e->version < 1 || e->version > 2)
            return false;
        members--;
    }
    if (members > 0 && !is_runtime && AK_FIXED(c, "\xa8preimage")) {
        if (!text(c, &e->preimage))
            return false;
        members--;
    }
    return members == 0;
}

/* Get the head of a map that has up to two members more than `least`. */
static bool map(ak_cursor *c, unsigned least, unsigned *more)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p) || *p < 0x80 + least || *p > 0x82 + least)
        return false;
    *more = *p - 0x80 - least;
    return true;
}

static bool event(ak_cursor *c, ak_wire_event *e)
{
    unsigned more;
    return map(c, 5, &more) && AK_FIXED(c, "\xa3imr") && integer(c, &e->imr) &&
           AK_FIXED(c, "\xaa"
                       "event_type") &&
           integer(c, &e->event_type) &&
           AK_FIXED(c, "\xa6"
                       "digest") &&
           blob(c, &e->digest) &&
           AK_FIXED(c, "\xa5"
                       "event") &&
           text(c, &e->name) &&
           AK_FIXED(c, "\xad"
                       "event_payload") &&
           blob(c, &e->payload) && optional(c, more, false, e);
}

static bool middle(ak_cursor *c, ak_td_evidence *td)
{
    return AK_FIXED(c, "\xa5stack\x82\xa4kind\xa6"
                       "dstack\xa4"
                       "data\x83\xabreport_data") &&
           integers(c, &td->report_data) && AK_FIXED(c, "\xaeruntime_events") &&
           events(c, &td->runtime_events);
}

static bool runtime_event(ak_cursor *c, ak_wire_event *e)
{
    unsigned more;
    return map(c, 2, &more) &&
           AK_FIXED(c, "\xa5"
                       "event") &&
           text(c, &e->name) && AK_FIXED(c, "\xa7payload") && blob(c, &e->payload) &&
           optional(c, more, true, e);
}

static bool finish(ak_cursor *c, ak_td_evidence *td)
{
    return AK_FIXED(c, "\xa6"
                       "config") &&
           text(c, &td->config) && ak_left(c) == 0;
}

const ak_evidence_codec ak_evidence_msgpack = {begin,  event,  middle, runtime_event,
                                               finish, decode, false};
