/* Internal interface of evidence_scale.c, _msgpack.c and _cmw.c: evidence of a TD, part by part.
 *
 * The functions of a codec are called in the order of its members, `event` and `runtime_event` as
 * often as the counts say. Each returns false if the evidence is malformed, exceeds a limit, or has
 * another layout than that of guest agents; it is then left to the Python decoder, which decodes or
 * rejects it. UTF-8 is not checked. */
#ifndef AK_EVIDENCE_H
#define AK_EVIDENCE_H

#include "ak_cursor.h"

/* Maximum number of items of a vector, and the size of the report data in SCALE. */
enum { AK_EVIDENCE_MAX_ITEMS = 65536, AK_EVIDENCE_REPORT_DATA = 64 };

/* An event of the log; a runtime event has name, payload and version only. */
typedef struct {
    uint32_t imr;
    uint32_t event_type;
    uint32_t version; /* 1 or 2 */
    ak_part digest;
    ak_part name;
    ak_part payload;
    ak_part preimage; /* p is NULL if it is absent */
} ak_wire_event;

/* Quote and report data are encoded; `size` is the number of their bytes when decoded. */
typedef struct {
    uint32_t events, runtime_events; /* numbers of them */
    bool has_collateral;             /* only a CMW may have it */
    ak_part quote, report_data;
    ak_part config;
    ak_part collateral;
    const uint8_t *part_end; /* in a CMW, the end of the part that is being read */
} ak_td_evidence;

typedef struct {
    bool (*begin)(ak_cursor *c, ak_td_evidence *td); /* up to the events */
    bool (*event)(ak_cursor *c, ak_wire_event *event);
    bool (*middle)(ak_cursor *c, ak_td_evidence *td); /* up to the runtime events */
    bool (*runtime_event)(ak_cursor *c, ak_wire_event *event);
    bool (*finish)(ak_cursor *c, ak_td_evidence *td); /* the rest; nothing may follow */
    void (*decode)(ak_part encoded, uint8_t *bytes);
    bool hex; /* digests and payloads of the log are in hex */
} ak_evidence_codec;

extern const ak_evidence_codec ak_evidence_scale, ak_evidence_msgpack, ak_evidence_cmw;

#endif
