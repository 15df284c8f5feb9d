/* Evidence of a TD in a CMW collection in CBOR, in the deterministic encoding. The event log is
 * compact JSON in it. Heads must be in their shortest form. */
#include "ak_evidence.h"

#include "ak_json.h"

enum { BYTES = 0x40, TEXT = 0x60, ARRAY = 0x80 };

/* Get the argument of a head with this major type. */
static bool head(ak_cursor *c, uint8_t major, uint32_t *argument)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p) || *p < major || *p > major + 26)
        return false;
    *argument = *p - major;
    if (*argument < 24)
        return true;
    const unsigned size = 1U << (*argument - 24);
    if (!ak_take(c, size, &p))
        return false;
    *argument = 0;
    for (unsigned i = 0; i < size; i++)
        *argument = *argument << 8 | p[i];
    return *argument >= (size == 1 ? 24 : 1U << 4 * size);
}

static bool string(ak_cursor *c, uint8_t major, ak_part *part)
{
    uint32_t size;
    if (!head(c, major, &size) || !ak_take(c, size, &part->p))
        return false;
    part->size = size;
    return true;
}

/* Get the content of a quoted string without escapes; of an even number of digits if it is hex. */
static bool quoted(ak_json *j, bool hex, ak_part *part)
{
    ak_json_text text;
    if ((hex ? ak_json_hex(j, &text) : ak_json_string(j, &text)) != AK_JSON_ACCEPTED ||
        text.escaped)
        return false;
    *part = (ak_part){text.p, text.size};
    return true;
}

static bool members(ak_json *j, ak_wire_event *e)
{
    ak_cursor *c = &j->at;
    e->version = 1;
    e->preimage.p = NULL;
    return AK_FIXED(c, "{\"imr\":") && ak_json_digits(c, UINT32_MAX, &e->imr) &&
           AK_FIXED(c, ",\"event_type\":") && ak_json_digits(c, UINT32_MAX, &e->event_type) &&
           AK_FIXED(c, ",\"digest\":") && quoted(j, true, &e->digest) &&
           AK_FIXED(c, ",\"event\":") && quoted(j, false, &e->name) &&
           AK_FIXED(c, ",\"event_payload\":") && quoted(j, true, &e->payload) &&
           (!AK_FIXED(c, ",\"version\":") ||
            (ak_json_digits(c, 2, &e->version) && e->version > 0)) &&
           (!AK_FIXED(c, ",\"preimage\":") || quoted(j, false, &e->preimage)) && AK_FIXED(c, "}");
}

/* Get an event, and skip the character behind it, which separates or ends. */
static bool event(ak_cursor *c, ak_wire_event *e)
{
    ak_json j = {*c, ak_hex(), true};
    const bool is_event = members(&j, e);
    *c = j.at;
    return is_event && (AK_FIXED(c, ",") || AK_FIXED(c, "]"));
}

/* Count the events of an array. */
static bool count(ak_cursor log, uint32_t *events)
{
    ak_wire_event e;
    *events = 0;
    if (!AK_FIXED(&log, "]"))
        do {
            if (*events == AK_EVIDENCE_MAX_ITEMS || !event(&log, &e))
                return false;
            ++*events;
        } while (log.p[-1] == ',');
    return ak_left(&log) == 0;
}

static bool begin(ak_cursor *c, ak_td_evidence *td)
{
    ak_part log;
    td->has_collateral = AK_FIXED(c, "\xa7"); /* head of a map of seven entries */
    if (!(td->has_collateral || AK_FIXED(c, "\xa6")) ||
        !AK_FIXED(c, "\x65quote\x83\x78\x23"
                     "application/vnd.attestkit.tdx-quote") ||
        !string(c, BYTES, &td->quote) ||
        !AK_FIXED(c, "\x04\x66"
                     "config\x83\x78\x27"
                     "application/vnd.attestkit.configuration") ||
        !string(c, BYTES, &td->config) ||
        !AK_FIXED(c, "\x04\x68__cmwc_t\x78\x2durn:uuid:80af6be3-f67e-4e47-b6f8-9d80239c6a98\x69"
                     "event_log\x83\x78\x28"
                     "application/vnd.attestkit.event-log+json") ||
        !string(c, BYTES, &log))
        return false;
    ak_cursor events = {log.p, log.p + log.size};
    td->part_end = events.end;
    if (!AK_FIXED(&events, "[") || !count(events, &td->events))
        return false;
    c->p = events.p + (td->events == 0); /* the events, or behind the end of an empty array */
    return true;
}

static bool middle(ak_cursor *c, ak_td_evidence *td)
{
    ak_part runtime;
    if (c->p != td->part_end || !AK_FIXED(c, "\x04") ||
        (td->has_collateral && !(AK_FIXED(c, "\x6a"
                                             "collateral\x83\x78\x29"
                                             "application/vnd.attestkit.collateral+json") &&
                                 string(c, BYTES, &td->collateral) && AK_FIXED(c, "\x03"))) ||
        !AK_FIXED(c, "\x6breport_data\x83\x78\x25"
                     "application/vnd.attestkit.report-data") ||
        !string(c, BYTES, &td->report_data) ||
        !AK_FIXED(c, "\x04\x6eruntime_events\x83\x78\x2d"
                     "application/vnd.attestkit.runtime-events+cbor") ||
        !string(c, BYTES, &runtime))
        return false;
    td->part_end = c->p;
    c->p = runtime.p;
    return head(c, ARRAY, &td->runtime_events) && td->runtime_events <= AK_EVIDENCE_MAX_ITEMS &&
           td->runtime_events <= runtime.size;
}

static bool runtime_event(ak_cursor *c, ak_wire_event *e)
{
    const bool has_version = AK_FIXED(c, "\xa3");
    e->version = 1;
    e->preimage.p = NULL;
    return (has_version || AK_FIXED(c, "\xa2")) && AK_FIXED(c, "\x65\x65vent") &&
           string(c, TEXT, &e->name) && AK_FIXED(c, "\x67payload") &&
           string(c, BYTES, &e->payload) &&
           (!has_version || (AK_FIXED(c, "\x67version") && head(c, 0, &e->version) &&
                             e->version >= 1 && e->version <= 2));
}

static bool finish(ak_cursor *c, ak_td_evidence *td)
{
    return c->p == td->part_end && AK_FIXED(c, "\x04") && ak_left(c) == 0;
}

static void decode(ak_part encoded, uint8_t *bytes)
{
    if (encoded.size > 0)
        memcpy(bytes, encoded.p, encoded.size);
}

const ak_evidence_codec ak_evidence_cmw = {begin,  event,  middle, runtime_event,
                                           finish, decode, true};
