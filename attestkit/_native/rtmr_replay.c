/* Replay: extend the four registers by the digests of a log. The digests of a register are a chain;
 * the chains of one log, or of many, are hashed in parallel lanes. */
#include "ak.h"
#include "ak_dispatch.h"

#include <string.h>

#define REGISTERS 4
#define DIGEST 48
#define WORDS 6 /* of 64 bits in a SHA-384 value */

/* A window is the part of the logs that is sorted into chains at a time. It has 14 kB on the stack,
 * because some threads have only 128 kB. Lanes run empty at its end, and a log may continue in the
 * next window. A window of four times the size is 3 % faster. */
enum { WINDOW_EVENTS = 1024, WINDOW_CHAINS = 256 };

typedef struct {
    const uint16_t *places; /* of its digests, counted from the first in the window */
    size_t left;            /* number of these digests */
    uint8_t *value;         /* value of the register, before and then after them */
} chain;

typedef struct {
    const uint8_t *digests;
    size_t events, chains;
    uint16_t place[REGISTERS * WINDOW_EVENTS];
    chain chain[WINDOW_CHAINS];
} window;

/* The chain of each lane; its value is in `words`. */
typedef struct {
    AK_SHA512_ALIGNED uint64_t words[WORDS * AK_SHA512_LANES];
    chain chain[AK_SHA512_LANES];
} work;

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

static void begin(work *at, size_t lanes, size_t i, const chain *c)
{
    at->chain[i] = *c;
    load_value(at->words + i, lanes, c->value);
}

/* Let an idle lane repeat the work of the lane with the most digests left. */
static void idle(work *at, size_t lanes, size_t i)
{
    size_t longest = 0;

    for (size_t j = 1; j < lanes; j++)
        if (at->chain[j].left > at->chain[longest].left)
            longest = j;
    at->chain[i] = at->chain[longest];
    at->chain[i].value = NULL;
}

/* Extend each lane by as many digests as the shortest chain has left. Returns a bit for each lane
 * that is done. Branch-free, because the branches would be unpredictable. */
static uint32_t extend_lanes(const ak_sha512_impl *impl, work *at, const uint8_t *digests)
{
    const uint8_t *digest[AK_SHA512_LANES];
    const size_t lanes = impl->lanes;
    size_t steps = SIZE_MAX;
    uint32_t done = 0;

    for (size_t i = 0; i < lanes; i++)
        steps = at->chain[i].left < steps ? at->chain[i].left : steps;
    for (size_t step = 0; step < steps; step++) {
        for (size_t i = 0; i < lanes; i++)
            digest[i] = digests + (size_t)DIGEST * at->chain[i].places[step];
        impl->extend(at->words, digest);
    }
    for (size_t i = 0; i < lanes; i++) {
        at->chain[i].places += steps;
        at->chain[i].left -= steps;
        done |= (uint32_t)(at->chain[i].left == 0) << i;
    }
    return done;
}

/* Process chains, one per lane, and start the next as soon as one is done, until so few are left
 * that an implementation with fewer lanes is faster. The rest is moved to the front of `chains`;
 * returns its number. */
static size_t fold(chain *chains, size_t count, const uint8_t *digests)
{
    const ak_sha512_impl *impl = ak_sha512_for(count);
    const size_t lanes = impl->lanes;
    const size_t begun = count < lanes ? count : lanes;
    size_t next = begun, live = begun, kept = 0;
    work at;

    for (size_t i = 0; i < lanes; i++)
        begin(&at, lanes, i, &chains[i < begun ? i : 0]);
    for (size_t i = begun; i < lanes; i++)
        idle(&at, lanes, i);
    while (live >= impl->least) {
        for (uint32_t done = extend_lanes(impl, &at, digests); done; done &= done - 1) {
            const size_t i = (size_t)__builtin_ctz(done);
            if (!at.chain[i].value)
                continue;
            store_value(at.chain[i].value, at.words + i, lanes);
            if (next < count) {
                begin(&at, lanes, i, &chains[next++]);
            } else {
                idle(&at, lanes, i);
                live--;
            }
        }
    }
    for (size_t i = 0; i < lanes; i++) {
        if (!at.chain[i].value)
            continue;
        store_value(at.chain[i].value, at.words + i, lanes);
        chains[kept++] = at.chain[i];
    }
    return kept;
}

static void fold_window(window *w)
{
    while (w->chains > 0)
        w->chains = fold(w->chain, w->chains, w->digests);
    w->events = 0;
}

/* Sort the events of a log, or of a part of it, into chains. The four counters are 16-bit parts of
 * one word, which is faster. */
static bool sort_events(window *w, const uint8_t *registers, size_t count, uint8_t *values)
{
    uint16_t *const place = w->place + REGISTERS * w->events; /* `count` for each register */
    uint64_t counts = 0;
    unsigned all = 0;

    for (size_t i = 0; i < count; i++) {
        const size_t r = registers[i] % REGISTERS;
        all |= registers[i];
        place[count * r + (counts >> 16 * r & 0xffff)] = (uint16_t)(w->events + i);
        counts += 1ULL << 16 * r;
    }
    if (all >= REGISTERS)
        return false;
    for (size_t r = 0; r < REGISTERS; r++) {
        const size_t left = counts >> 16 * r & 0xffff;
        if (left > 0)
            w->chain[w->chains++] = (chain){place + count * r, left, values + DIGEST * r};
    }
    w->events += count;
    return true;
}

/* Add a log to the window; process the window whenever it is full. */
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
