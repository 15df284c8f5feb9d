/* The event log of the dstack guest agent, from JSON to registers and digests in one pass.
 *
 * The parser in agent_json.py defines the format and has the error texts. This pass gives the same
 * result, or leaves the text to that parser. Besides the cases of ak_json.h, it leaves:
 *
 *   - keys with escapes, and more than MAX_OTHERS unknown keys in an event
 *   - version 2 runtime events whose names have escapes
 *   - runtime events with another digest or, in version 2, without preimage or with another one
 *   - logs that exceed the maximum number of events or the maximum size */
#include "ak_json.h"
#include "ak_sha512.h"

#define ACCEPTED AK_JSON_ACCEPTED
#define REFUSED AK_JSON_REFUSED
#define LEFT AK_JSON_LEFT

#define NO_ACTION 3
#define RUNTIME_EVENT 0x08000001
#define RUNTIME_REGISTER 3

#define MAX_EVENTS 65536
#define MAX_OTHERS 8
#define SHORTEST 63 /* a runtime event with empty digest, name and payload, and a comma */
#define DIGEST 48

/* The keys of an event; each is a bit of `seen`. */
enum { IMR, EVENT_TYPE, DIGEST_HEX, EVENT, EVENT_PAYLOAD, VERSION, PREIMAGE, KEYS };
#define BIT(key) (1U << (key))
#define NEEDED (BIT(IMR) | BIT(EVENT_TYPE) | BIT(EVENT) | BIT(EVENT_PAYLOAD))

/* A log that is being parsed, and the result so far. */
typedef struct {
    ak_json json;
    const uint8_t *start;
    ak_agent_row *rows; /* of `count` events, and `capacity` at most; so are the columns */
    size_t capacity, count;
    uint8_t *registers, *digests; /* of the `extending` ones */
    size_t extending;
    uint32_t *offsets, *sizes; /* preimages of `runtimes` events */
    uint8_t *own;              /* and their digests */
    size_t runtimes;
    uint8_t *preimages; /* `used` bytes of `room` */
    size_t used, room;
    bool regular;
} walk;

/* The event that is being parsed: its keys and strings. */
typedef struct {
    uint32_t seen;
    uint32_t other_count;
    ak_json_text others[MAX_OTHERS];
    ak_json_text name, payload, preimage;
} event;

static uint32_t offset_of(const walk *w, const ak_json_text *text)
{
    return (uint32_t)(text->p - w->start);
}

static bool is(const ak_json_text *key, const char *name)
{
    return strlen(name) == key->size && memcmp(name, key->p, key->size) == 0;
}

/* Record an unknown key, to detect duplicates. */
static ak_json_outcome other_key(event *e, const ak_json_text *key)
{
    for (size_t i = 0; i < e->other_count; i++)
        if (e->others[i].size == key->size && memcmp(e->others[i].p, key->p, key->size) == 0)
            return REFUSED;
    if (e->other_count == MAX_OTHERS)
        return LEFT;
    e->others[e->other_count++] = *key;
    return ACCEPTED;
}

/* Parse a key and its colon; return KEYS for an unknown key. */
static ak_json_outcome read_key(walk *w, event *e, unsigned *key)
{
    static const char *const names[KEYS] = {"imr",           "event_type", "digest",  "event",
                                            "event_payload", "version",    "preimage"};
    /* Keys that identify a record of a Canonical Event Log. */
    static const char *const cel[] = {"recnum", "digests", "content_type"};
    ak_json_text found;

    if (ak_json_string(&w->json, &found) != ACCEPTED || !ak_json_eat(&w->json, ':'))
        return REFUSED;
    if (found.escaped)
        return LEFT;
    for (size_t i = 0; i < sizeof cel / sizeof *cel; i++)
        if (is(&found, cel[i]))
            return REFUSED;
    for (*key = 0; *key < KEYS; ++*key)
        if (is(&found, names[*key]))
            break;
    if (*key == KEYS)
        return other_key(e, &found);
    if (e->seen & BIT(*key))
        return REFUSED;
    e->seen |= BIT(*key);
    return ACCEPTED;
}

/* Parse a digest, and store it as that of the next extending event. */
static ak_json_outcome read_digest(walk *w, ak_agent_row *row)
{
    ak_json_text hex;
    const ak_json_outcome outcome = ak_json_hex(&w->json, &hex);

    if (outcome != ACCEPTED)
        return outcome;
    if (hex.size != 0 && hex.size != 2 * DIGEST)
        return REFUSED;
    row->digest = offset_of(w, &hex);
    row->digest_size = (uint8_t)(hex.size / 2);
    (void)w->json.hex->decode(hex.p, hex.size, w->digests + DIGEST * w->extending);
    return ACCEPTED;
}

/* Parse an integer of at most 3. */
static ak_json_outcome read_small(walk *w, uint32_t least, uint32_t most, uint8_t *out)
{
    uint32_t number;
    const ak_json_outcome outcome = ak_json_number(&w->json, most, &number);

    if (outcome != ACCEPTED)
        return outcome;
    *out = (uint8_t)number;
    return number < least ? REFUSED : ACCEPTED;
}

/* Parse a member of an event. */
static ak_json_outcome read_member(walk *w, event *e, ak_agent_row *row)
{
    unsigned key;
    const ak_json_outcome outcome = read_key(w, e, &key);

    if (outcome != ACCEPTED)
        return outcome;
    switch (key) {
    case IMR:
        return read_small(w, 0, 3, &row->imr);
    case EVENT_TYPE:
        return ak_json_number(&w->json, UINT32_MAX, &row->event_type);
    case DIGEST_HEX:
        return read_digest(w, row);
    case EVENT:
        return ak_json_string(&w->json, &e->name);
    case EVENT_PAYLOAD:
        return ak_json_hex(&w->json, &e->payload);
    case VERSION:
        return read_small(w, 1, 2, &row->version);
    case PREIMAGE:
        ak_json_skip_blanks(&w->json);
        return AK_FIXED(&w->json.at, "null") ? ACCEPTED : ak_json_hex(&w->json, &e->preimage);
    default:
        return ak_json_value(&w->json);
    }
}

/* Fast path: parse the mandatory members in the agent's order and without white space. If the text
 * differs, the members are parsed one by one. */
static bool read_compact(walk *w, event *e, ak_agent_row *row)
{
    ak_cursor c = w->json.at; /* a local copy, which the compiler keeps in registers */
    uint32_t imr;

    if (!AK_FIXED(&c, "{\"imr\":") || !ak_json_digits(&c, 3, &imr) ||
        !AK_FIXED(&c, ",\"event_type\":") || !ak_json_digits(&c, UINT32_MAX, &row->event_type) ||
        !AK_FIXED(&c, ",\"digest\":\""))
        return false;
    row->imr = (uint8_t)imr;
    row->digest = (uint32_t)(c.p - w->start);
    if (!AK_FIXED(&c, "\",\"event\":\"")) {
        const uint8_t *hex;
        if (!ak_take(&c, 2 * DIGEST, &hex) || !AK_FIXED(&c, "\",\"event\":\"") ||
            !w->json.hex->decode(hex, 2 * DIGEST, w->digests + DIGEST * w->extending))
            return false;
        row->digest_size = DIGEST;
    }
    e->seen = NEEDED | BIT(DIGEST_HEX);
    e->name = (ak_json_text){.p = c.p};
    if (!AK_FIXED(&c, "\",\"event_payload\":")) { /* the name is not empty */
        w->json.at = c;
        if (ak_json_string_rest(&w->json, &e->name) != ACCEPTED ||
            !AK_FIXED(&w->json.at, ",\"event_payload\":"))
            return false;
        c = w->json.at;
    }
    w->json.at = c;
    return ak_json_hex(&w->json, &e->payload) == ACCEPTED;
}

/* Write a version 1 preimage: type, name and payload, joined by colons. */
static ak_json_outcome preimage_v1(walk *w, const event *e, uint8_t *out, size_t *size)
{
    static const uint8_t type[] = {1, 0, 0, 8, ':'};
    uint8_t *name = out + sizeof type;
    size_t name_size = e->name.size;

    memcpy(out, type, sizeof type);
    if (!e->name.escaped)
        memcpy(name, e->name.p, name_size);
    else if ((name_size = ak_json_unescape(&w->json, &e->name, name)) == SIZE_MAX)
        return REFUSED;
    if (memchr(name, ':', name_size))
        w->regular = false;
    name[name_size] = ':';
    (void)w->json.hex->decode(e->payload.p, e->payload.size, name + name_size + 1);
    *size = sizeof type + name_size + 1 + e->payload.size / 2;
    return ACCEPTED;
}

/* Write a version 2 preimage, canonical JSON (RFC 8785), and compare it with the received one. */
static ak_json_outcome preimage_v2(walk *w, const event *e, uint8_t *out, size_t *size)
{
    static const char name[] = "{\"name\":\"", payload[] = "\",\"payload\":\"",
                      type[] = "\",\"type\":134217729}";
    uint8_t *p = out;

    if (e->name.escaped)
        return LEFT;
    memcpy(p, name, sizeof name - 1);
    p += sizeof name - 1;
    memcpy(p, e->name.p, e->name.size);
    p += e->name.size;
    memcpy(p, payload, sizeof payload - 1);
    p += sizeof payload - 1;
    for (size_t i = 0; i < e->payload.size; i++)
        *p++ = e->payload.p[i] | 0x20; /* to lower case; digits have this bit set */
    memcpy(p, type, sizeof type - 1);
    p += sizeof type - 1;
    *size = (size_t)(p - out);
    if (e->preimage.size != 2 * *size)
        return LEFT;
    (void)w->json.hex->decode(e->preimage.p, e->preimage.size, p);
    return memcmp(out, p, *size) == 0 ? ACCEPTED : LEFT;
}

/* Write the preimage of a runtime event. */
static ak_json_outcome add_preimage(walk *w, const event *e, const ak_agent_row *row)
{
    uint8_t *out = w->preimages + w->used;
    size_t size;
    const ak_json_outcome outcome =
        row->version == 2 ? preimage_v2(w, e, out, &size) : preimage_v1(w, e, out, &size);

    if (outcome != ACCEPTED)
        return outcome;
    w->offsets[w->runtimes] = (uint32_t)w->used;
    w->sizes[w->runtimes++] = (uint32_t)size;
    w->used += size;
    return ACCEPTED;
}

/* Check that an event is complete, and add it to the result. */
static ak_json_outcome end_event(walk *w, const event *e, ak_agent_row *row)
{
    const bool runtime = row->event_type == RUNTIME_EVENT;
    const size_t most = SHORTEST + e->name.size + e->payload.size + e->preimage.size / 2;
    ak_json_outcome outcome = ACCEPTED;

    if ((e->seen & NEEDED) != NEEDED || (!runtime && row->digest_size == 0))
        return REFUSED;
    if (most > w->room - w->used)
        return LEFT;
    if (runtime)
        outcome = add_preimage(w, e, row);
    else if (e->name.escaped &&
             ak_json_unescape(&w->json, &e->name, w->preimages + w->used) == SIZE_MAX)
        outcome = REFUSED;
    if (row->event_type != NO_ACTION) {
        w->registers[w->extending++] = row->imr;
        w->regular &= runtime == (row->imr == RUNTIME_REGISTER);
    }
    row->name = offset_of(w, &e->name);
    row->name_size = (uint32_t)e->name.size;
    row->name_escaped = e->name.escaped;
    row->payload = offset_of(w, &e->payload);
    row->payload_size = (uint32_t)e->payload.size;
    w->count++;
    return outcome;
}

static ak_json_outcome read_event(walk *w)
{
    ak_agent_row *row = &w->rows[w->count];
    const ak_cursor start = w->json.at;
    event e;
    ak_json_outcome outcome;

    if (w->count == w->capacity)
        return LEFT;
    e.seen = e.other_count = 0;
    e.preimage.size = 0;
    *row = (ak_agent_row){.version = 1};
    if (!read_compact(w, &e, row)) {
        w->json.at = start;
        e.seen = 0;
        *row = (ak_agent_row){.version = 1};
        if (!ak_json_eat(&w->json, '{'))
            return REFUSED;
        if ((outcome = read_member(w, &e, row)) != ACCEPTED)
            return outcome;
    }
    while (ak_json_eat(&w->json, ','))
        if ((outcome = read_member(w, &e, row)) != ACCEPTED)
            return outcome;
    return ak_json_eat(&w->json, '}') ? end_event(w, &e, row) : REFUSED;
}

/* Parse the array, which must be the whole text. */
static ak_json_outcome read_array(walk *w, size_t size)
{
    if (!ak_json_eat(&w->json, '['))
        return REFUSED;
    if (!ak_json_eat(&w->json, ']')) {
        do {
            const ak_json_outcome outcome = read_event(w);
            if (outcome != ACCEPTED)
                return outcome;
        } while (ak_json_eat(&w->json, ','));
        if (!ak_json_eat(&w->json, ']'))
            return REFUSED;
    }
    ak_json_skip_blanks(&w->json);
    if (ak_left(&w->json.at) || (!w->json.ascii && !ak_json_utf8(w->start, size)))
        return REFUSED;
    return ACCEPTED;
}

/* Store the computed digests of the runtime events; received digests must be equal to them. */
static ak_json_outcome add_digests(const walk *w)
{
    const uint8_t *own = w->own;
    uint8_t *place = w->digests;

    ak_sha384_many(w->preimages, w->offsets, w->sizes, w->runtimes, w->own);
    for (size_t i = 0; i < w->count; i++) {
        if (w->rows[i].event_type == NO_ACTION)
            continue;
        if (w->rows[i].event_type == RUNTIME_EVENT) {
            if (w->rows[i].digest_size && memcmp(place, own, DIGEST) != 0)
                return LEFT;
            memcpy(place, own, DIGEST);
            own += DIGEST;
        }
        place += DIGEST;
    }
    return ACCEPTED;
}

/* Partition the buffer; return false if it is too small. */
static bool divide(walk *w, uint8_t *room, size_t size)
{
    const size_t n = w->capacity, each = sizeof *w->rows + 2 * (DIGEST + sizeof *w->sizes) + 1;
    const size_t columns = sizeof(ak_agent_log) + n * each;

    if (size < columns)
        return false;
    w->rows = (ak_agent_row *)(void *)(room + sizeof(ak_agent_log));
    w->offsets = (uint32_t *)(void *)(w->rows + n);
    w->sizes = w->offsets + n;
    w->digests = (uint8_t *)(w->sizes + n);
    w->own = w->digests + DIGEST * n;
    w->registers = w->own + DIGEST * n;
    w->preimages = w->registers + n;
    w->room = size - columns;
    return true;
}

ak_json_outcome ak_agent_json_walk(const uint8_t *data, size_t size, uint8_t *room,
                                   size_t room_size)
{
    walk w;
    ak_json_outcome outcome;

    if (size > AK_AGENT_MAX_SIZE)
        return LEFT;
    w.json = (ak_json){{data, data + size}, ak_hex(), true};
    w.start = data;
    w.count = w.extending = w.runtimes = w.used = 0;
    w.regular = true;
    w.capacity = size / SHORTEST + 1 < MAX_EVENTS ? size / SHORTEST + 1 : MAX_EVENTS;
    if (!divide(&w, room, room_size))
        return LEFT;
    if ((outcome = read_array(&w, size)) == ACCEPTED)
        outcome = add_digests(&w);
    *(ak_agent_log *)(void *)room = (ak_agent_log){
        .count = (uint32_t)w.count,
        .rows = sizeof(ak_agent_log),
        .extending = (uint32_t)w.extending,
        .registers = (uint32_t)(w.registers - room),
        .digests = (uint32_t)(w.digests - room),
        .regular = w.regular,
    };
    return outcome;
}
