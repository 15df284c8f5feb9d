/* The structure of CBOR (RFC 8949), checked before a decoder creates objects from it. The rules are
 * those of _python_cbor.py. Nothing is recursive, and no key is compared with more than the
 * logarithm of the number of keys. */
#include <string.h>

#include "ak_cbor.h"
#include "ak_cursor.h"
#include "ak_json.h"

enum { UINT, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, OTHER };
enum { FALSE_VALUE = 20, TRUE_VALUE = 21, NULL_VALUE = 22, BREAK = 0xff };

typedef struct {
    uint64_t argument;
    uint8_t major;
    bool indefinite;
    bool shortest;
    bool one_byte;
} cbor_head;

/* An array or a map whose items are being read. */
typedef struct {
    const uint8_t *start;
    uint64_t left;    /* items, or entries of a map; unused if the length is indefinite */
    size_t first_key; /* of a map, in `keys` */
    bool indefinite;
    bool map;
    bool key_next;
} cbor_container;

typedef struct {
    ak_cursor c;
    bool canonical;
    const uint8_t *at; /* of the error */
    uint32_t values;
    const uint8_t **keys; /* of the open maps, those of each map in order */
    size_t key_count, room;
    size_t depth;
    cbor_container open[AK_CBOR_MAX_DEPTH + 1]; /* the innermost one has no items */
} cbor_checker;

static ak_status read_head(ak_cursor *c, cbor_head *h)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p))
        return AK_E_CBOR_TRUNCATED;
    const uint8_t low = *p & 0x1f;
    h->major = *p >> 5;
    h->indefinite = low == 31;
    h->shortest = h->one_byte = true;
    h->argument = low;
    if (low < 24)
        return AK_OK;
    if (h->indefinite)
        return h->major < BYTES || h->major > MAP ? AK_E_CBOR_SYNTAX : AK_OK;
    if (low > 27)
        return AK_E_CBOR_SYNTAX;
    static const uint64_t least[] = {24, 1 << 8, 1 << 16, 1ULL << 32};
    const size_t size = (size_t)1 << (low - 24);
    if (!ak_take(c, size, &p))
        return AK_E_CBOR_TRUNCATED;
    h->argument = 0;
    for (size_t i = 0; i < size; i++)
        h->argument = h->argument << 8 | p[i];
    h->shortest = h->argument >= least[low - 24];
    h->one_byte = false;
    return AK_OK;
}

/* Skip a break if it is next. */
static bool take_break(ak_cursor *c)
{
    if (ak_left(c) == 0 || *c->p != BREAK)
        return false;
    c->p++;
    return true;
}

/* Refuse a value at `at`; one that is truncated, where bytes are missing. */
static ak_status refuse(cbor_checker *k, ak_status status, const uint8_t *at)
{
    k->at = status == AK_E_CBOR_TRUNCATED ? k->c.p : at;
    return status;
}

static ak_status take_content(cbor_checker *k, const cbor_head *h, const uint8_t *start)
{
    const uint8_t *p;
    if (h->argument > ak_left(&k->c))
        return refuse(k, AK_E_CBOR_TRUNCATED, start);
    (void)ak_take(&k->c, (size_t)h->argument, &p);
    if (h->major == TEXT && !ak_json_utf8(p, (size_t)h->argument))
        return refuse(k, AK_E_CBOR_TEXT, start);
    return AK_OK;
}

/* The chunks of a string of indefinite length (RFC 8949, 3.2.3). */
static ak_status take_chunks(cbor_checker *k, uint8_t major)
{
    while (!take_break(&k->c)) {
        cbor_head h;
        const uint8_t *at = k->c.p;
        ak_status status = read_head(&k->c, &h);
        if (status == AK_OK && ++k->values > AK_CBOR_MAX_VALUES)
            status = AK_E_CBOR_VALUES;
        if (status == AK_OK && (h.major != major || h.indefinite))
            status = AK_E_CBOR_CHUNK;
        if (status != AK_OK)
            return refuse(k, status, at);
        if ((status = take_content(k, &h, at)) != AK_OK)
            return status;
    }
    return AK_OK;
}

/* A key that was checked, such that keys which are equal in Python have equal heads: 1 and true,
 * and the same number in heads of different sizes. */
static cbor_head key_head(ak_cursor *key)
{
    cbor_head h;
    (void)read_head(key, &h);
    if (h.major == OTHER && h.argument != NULL_VALUE) {
        h.major = UINT;
        h.argument = h.argument == TRUE_VALUE;
    }
    return h;
}

/* The order of keys is that of RFC 8949, 4.2.1, for all that is in canonical form. */
static int compare_keys(const cbor_checker *k, const uint8_t *one, const uint8_t *other)
{
    ak_cursor a = {one, k->c.end}, b = {other, k->c.end};
    const cbor_head first = key_head(&a), second = key_head(&b);
    if (first.major != second.major)
        return first.major < second.major ? -1 : 1;
    if (first.argument != second.argument)
        return first.argument < second.argument ? -1 : 1;
    if (first.major != BYTES && first.major != TEXT)
        return 0;
    return memcmp(a.p, b.p, (size_t)first.argument);
}

/* Insert a key among those of its map; in sorted maps it is the last one. */
static ak_status add_key(cbor_checker *k, const uint8_t *key)
{
    size_t low = k->open[k->depth - 1].first_key, high = k->key_count;
    for (size_t middle = high - 1; low < high; middle = low + (high - low) / 2) {
        const int order = compare_keys(k, k->keys[middle], key);
        if (order == 0)
            return refuse(k, AK_E_CBOR_DUPLICATE, key);
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (k->key_count == k->room)
        return refuse(k, AK_E_CBOR_VALUES, key);
    memmove(k->keys + low + 1, k->keys + low, (k->key_count - low) * sizeof *k->keys);
    k->keys[low] = key;
    k->key_count++;
    return AK_OK;
}

/* Count a complete value in the array or map around it. */
static ak_status complete(cbor_checker *k, const uint8_t *start, bool may_be_key)
{
    if (k->depth == 0)
        return AK_OK;
    cbor_container *around = &k->open[k->depth - 1];
    if (!around->map || !around->key_next) {
        around->left--;
        around->key_next = around->map;
        return AK_OK;
    }
    around->key_next = false;
    if (k->key_count - around->first_key == AK_CBOR_MAX_ENTRIES)
        return refuse(k, AK_E_CBOR_ENTRIES, start);
    return may_be_key ? add_key(k, start) : refuse(k, AK_E_CBOR_KEY, start);
}

static bool has_ended(cbor_checker *k)
{
    const cbor_container *in = &k->open[k->depth - 1];
    if (in->map && !in->key_next)
        return false;
    return in->indefinite ? take_break(&k->c) : in->left == 0;
}

/* Close arrays and maps without further items. */
static ak_status close_ended(cbor_checker *k)
{
    ak_status status = AK_OK;
    while (status == AK_OK && k->depth > 0 && has_ended(k)) {
        const cbor_container *in = &k->open[--k->depth];
        if (in->map)
            k->key_count = in->first_key;
        status = complete(k, in->start, false);
    }
    return status;
}

static ak_status check_head(cbor_checker *k, cbor_head *h)
{
    const ak_status status = read_head(&k->c, h);
    if (status != AK_OK)
        return status;
    if (k->canonical && h->indefinite)
        return AK_E_CBOR_INDEFINITE;
    if (k->canonical && !h->shortest && h->major != OTHER)
        return AK_E_CBOR_HEAD;
    if (++k->values > AK_CBOR_MAX_VALUES)
        return AK_E_CBOR_VALUES;
    return k->depth > AK_CBOR_MAX_DEPTH ? AK_E_CBOR_DEPTH : AK_OK;
}

/* Check one value; of an array or a map, the head. */
static ak_status check_value(cbor_checker *k)
{
    cbor_head h;
    const uint8_t *start = k->c.p;
    ak_status status = check_head(k, &h);
    if (status != AK_OK)
        return refuse(k, status, start);
    if (h.major == ARRAY || h.major == MAP) {
        const bool map = h.major == MAP;
        k->open[k->depth++] =
            (cbor_container){start, h.argument, k->key_count, h.indefinite, map, map};
        return AK_OK;
    }
    if (h.major == BYTES || h.major == TEXT)
        status = h.indefinite ? take_chunks(k, h.major) : take_content(k, &h, start);
    else if (h.major == TAG)
        status = refuse(k, AK_E_CBOR_TYPE, start);
    else if (h.major == OTHER &&
             (!h.one_byte || h.argument < FALSE_VALUE || h.argument > NULL_VALUE))
        status = refuse(k, AK_E_CBOR_TYPE, start);
    return status == AK_OK ? complete(k, start, !h.indefinite) : status;
}

ak_status ak_cbor_check(const uint8_t *data, size_t size, int canonical, const uint8_t **keys,
                        size_t room, size_t *at)
{
    cbor_checker k;
    k.c = (ak_cursor){data, data + size};
    k.canonical = canonical != 0;
    k.at = data;
    k.values = 0;
    k.keys = keys;
    k.key_count = 0;
    k.room = room;
    k.depth = 0;
    ak_status status;
    do {
        status = check_value(&k);
        if (status == AK_OK)
            status = close_ended(&k);
    } while (status == AK_OK && k.depth > 0);
    if (status == AK_OK && ak_left(&k.c) > 0)
        status = refuse(&k, AK_E_CBOR_TRAILING, k.c.p);
    *at = (size_t)(k.at - data);
    return status;
}
