/* Replay: fold the digests of a log into its four registers. A register is a chain, one digest
 * after the other; the chains of a log, or of many, are folded side by side. */
#include "ak.h"
#include "ak_dispatch.h"

#include <string.h>

#define REGISTERS 4
#define DIGEST 48
#define WORDS 6 /* of 64 bits in a SHA-384 value */

/* A window is as much of the logs as is sorted into chains at a time, on the stack. At its end
 * lanes run empty, which is 1 % of the work in 8192 events; a log may go on in the next. */
enum { WINDOW_EVENTS = 8192, WINDOW_CHAINS = 1024 };

typedef struct {
    const uint16_t *places; /* of its next digests, among those of the window */
    size_t left;            /* how many these are */
    uint8_t *value;         /* of the register, before them and then after */
} chain;

typedef struct {
    const uint8_t *digests;
    size_t events, chains;
    uint16_t place[WINDOW_EVENTS];
    chain chain[WINDOW_CHAINS];
} window;

static void load_value(uint64_t *word, size_t lanes, const uint8_t *value)
{
    for (unsigned i = 0; i < WORDS; i++)
        word[lanes * i] = ak_be64(value + 8 * i);
}

static void store_value(uint8_t *value, const uint64_t *word, size_t lanes)
{
    for (unsigned i = 0; i < WORDS; i++)
        ak_put_be64(value + 8 * i, word[lanes * i]);
}

/* Extend each lane by as many digests as the shortest of its chains has left. Lanes without a chain
 * do what another does. */
static void extend_lanes(const ak_sha512_impl *impl, uint64_t *values, chain *lane,
                         const uint8_t *digests)
{
    const uint16_t *places[AK_SHA512_LANES];
    const uint8_t *digest[AK_SHA512_LANES];
    const chain *shortest = NULL;

    for (size_t i = 0; i < impl->lanes; i++)
        if (lane[i].left > 0 && (!shortest || lane[i].left < shortest->left))
            shortest = &lane[i];
    const size_t steps = shortest->left;
    for (size_t i = 0; i < impl->lanes; i++)
        places[i] = lane[i].left > 0 ? lane[i].places : shortest->places;
    for (size_t step = 0; step < steps; step++) {
        for (size_t i = 0; i < impl->lanes; i++)
            digest[i] = digests + (size_t)DIGEST * places[i][step];
        impl->extend(values, digest);
    }
    for (size_t i = 0; i < impl->lanes; i++)
        if (lane[i].left > 0) {
            lane[i].places += steps;
            lane[i].left -= steps;
        }
}

/* Fold chains, a lane each, the next as soon as one is done, until so few are left that fewer lanes
 * are faster. These are then the first of `chains`; returns how many. */
static size_t fold(chain *chains, size_t count, const uint8_t *digests)
{
    const ak_sha512_impl *impl = ak_sha512_for(count);
    const size_t lanes = impl->lanes;
    AK_SHA512_ALIGNED uint64_t values[WORDS * AK_SHA512_LANES] = {0};
    chain lane[AK_SHA512_LANES] = {{0}};
    size_t next = 0, live = 0;

    for (; next < count && next < lanes; next++, live++) {
        lane[next] = chains[next];
        load_value(values + next, lanes, lane[next].value);
    }
    while (live >= impl->least) {
        extend_lanes(impl, values, lane, digests);
        for (size_t i = 0; i < lanes; i++) {
            if (lane[i].left > 0 || !lane[i].value)
                continue;
            store_value(lane[i].value, values + i, lanes);
            lane[i] = next < count ? chains[next++] : (chain){0};
            if (lane[i].value)
                load_value(values + i, lanes, lane[i].value);
            else
                live--;
        }
    }
    for (size_t i = 0, at = 0; i < lanes; i++) {
        if (!lane[i].value)
            continue;
        store_value(lane[i].value, values + i, lanes);
        chains[at++] = lane[i];
    }
    return live;
}

static void fold_window(window *w)
{
    while (w->chains > 0)
        w->chains = fold(w->chain, w->chains, w->digests);
    w->events = 0;
}

/* Sort the events of a log, or of a part of it, into chains. Counts of the four registers, and then
 * where their next places go, are 16 bits each of one word: there are no more events than fit. */
static bool sort_events(window *w, const uint8_t *registers, size_t count, uint8_t *values)
{
    uint64_t counts = 0, starts;
    unsigned all = 0;

    for (size_t i = 0; i < count; i++) {
        all |= registers[i];
        counts += 1ULL << 16 * (registers[i] & 3);
    }
    if (all >= REGISTERS)
        return false;
    starts = (counts << 16) + (counts << 32) + (counts << 48);
    uint16_t *const place = w->place + w->events;
    for (unsigned r = 0; r < REGISTERS; r++) {
        const size_t left = counts >> 16 * r & 0xffff, start = starts >> 16 * r & 0xffff;
        if (left > 0)
            w->chain[w->chains++] = (chain){place + start, left, values + DIGEST * r};
    }
    for (size_t i = 0; i < count; i++) {
        place[starts >> 16 * registers[i] & 0xffff] = (uint16_t)(w->events + i);
        starts += 1ULL << 16 * registers[i];
    }
    w->events += count;
    return true;
}

/* Put a log into the window; fold as often as it is full. */
static bool add_log(window *w, const uint8_t *registers, const uint8_t *digests, size_t count,
                    uint8_t *values)
{
    memset(values, 0, (size_t)REGISTERS * DIGEST);
    for (size_t at = 0, some; at < count; at += some) {
        if (w->events == WINDOW_EVENTS || w->chains + REGISTERS > WINDOW_CHAINS)
            fold_window(w);
        if (w->events == 0)
            w->digests = digests + DIGEST * at;
        some = count - at;
        if (some > WINDOW_EVENTS - w->events)
            some = WINDOW_EVENTS - w->events;
        if (!sort_events(w, registers + at, some, values))
            return false;
    }
    return true;
}

ak_status ak_replay(const uint8_t *registers, const uint8_t *digests, size_t count, uint8_t *values)
{
    window w;

    w.events = w.chains = 0;
    if (!add_log(&w, registers, digests, count, values))
        return AK_E_REGISTER;
    fold_window(&w);
    return AK_OK;
}

ak_status ak_replay_many(const uint8_t *registers, const uint8_t *digests, const uint32_t *counts,
                         size_t logs, uint8_t *values)
{
    window w;

    w.events = w.chains = 0;
    for (size_t i = 0; i < logs; i++) {
        if (!add_log(&w, registers, digests, counts[i], values))
            return AK_E_REGISTER;
        registers += counts[i];
        digests += (size_t)DIGEST * counts[i];
        values += REGISTERS * DIGEST;
    }
    fold_window(&w);
    return AK_OK;
}
