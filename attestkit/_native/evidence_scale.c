/* Evidence of a TD in SCALE, wire version 0. Lengths and counts are compact integers in their
 * shortest form. */
#include "ak_evidence.h"

#include <string.h>

static bool u32(ak_cursor *c, uint32_t *value)
{
    const uint8_t *p;
    if (!ak_take(c, 4, &p))
        return false;
    *value = ak_le32(p);
    return true;
}

static bool compact(ak_cursor *c, uint32_t *value)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p))
        return false;
    const unsigned mode = *p & 3;
    *value = *p >> 2;
    if (mode == 0)
        return true;
    if (mode == 1) {
        *value |= (uint32_t)(ak_take(c, 1, &p) ? *p : 0) << 6;
        return *value >= 1U << 6;
    }
    if (mode == 2) {
        if (!ak_take(c, 3, &p))
            return false;
        *value |= (uint32_t)p[0] << 6 | (uint32_t)p[1] << 14 | (uint32_t)p[2] << 22;
        return *value >= 1U << 14;
    }
    return *value == 0 && u32(c, value) && *value >= 1U << 30;
}

static bool blob(ak_cursor *c, ak_part *part)
{
    uint32_t size;
    part->size = 0;
    if (!compact(c, &size) || !ak_take(c, size, &part->p))
        return false;
    part->size = size;
    return true;
}

static bool count(ak_cursor *c, uint32_t *items)
{
    return compact(c, items) && *items <= AK_EVIDENCE_MAX_ITEMS && *items <= ak_left(c);
}

/* Wire version 0, and index 0 of the platform. */
static bool begin(ak_cursor *c, ak_td_evidence *td)
{
    const uint8_t *p;
    return ak_take(c, 2, &p) && p[0] == 0 && p[1] == 0 && blob(c, &td->quote) &&
           count(c, &td->events);
}

static bool event(ak_cursor *c, ak_wire_event *e)
{
    e->version = 1;
    e->preimage.p = NULL;
    return u32(c, &e->imr) && u32(c, &e->event_type) && blob(c, &e->digest) && blob(c, &e->name) &&
           blob(c, &e->payload);
}

static bool middle(ak_cursor *c, ak_td_evidence *td)
{
    return count(c, &td->runtime_events);
}

static bool runtime_event(ak_cursor *c, ak_wire_event *e)
{
    e->version = 1;
    return blob(c, &e->name) && blob(c, &e->payload);
}

static bool finish(ak_cursor *c, ak_td_evidence *td)
{
    td->report_data.size = AK_EVIDENCE_REPORT_DATA;
    return ak_take(c, AK_EVIDENCE_REPORT_DATA, &td->report_data.p) && blob(c, &td->config) &&
           ak_left(c) == 0;
}

static void decode(ak_part encoded, uint8_t *bytes)
{
    if (encoded.size > 0)
        memcpy(bytes, encoded.p, encoded.size);
}

const ak_evidence_codec ak_evidence_scale = {begin,  event,  middle, runtime_event,
                                             finish, decode, false};
