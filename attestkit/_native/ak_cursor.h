/* A bounds-checked cursor over untrusted bytes.
 *
 * All reads use ak_take, which compares a size with the number of remaining bytes and does not add
 * it to an offset, so that nothing overflows. */
#ifndef AK_CURSOR_H
#define AK_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *p;
    const uint8_t *end;
} ak_cursor;

/* A part of the bytes. */
typedef struct {
    const uint8_t *p;
    size_t size;
} ak_part;

static inline size_t ak_left(const ak_cursor *c)
{
    return (size_t)(c->end - c->p);
}

/* Return the next n bytes and skip them; if there are fewer, do not move the cursor. */
static inline bool ak_take(ak_cursor *c, size_t n, const uint8_t **data)
{
    if (n > ak_left(c))
        return false;
    *data = c->p;
    c->p += n;
    return true;
}

/* Skip these bytes, if they are next. */
static inline bool ak_fixed(ak_cursor *c, const char *wanted, size_t size)
{
    if (ak_left(c) < size || memcmp(c->p, wanted, size) != 0)
        return false;
    c->p += size;
    return true;
}
#define AK_FIXED(cursor, literal) ak_fixed(cursor, literal, sizeof(literal) - 1)

static inline uint16_t ak_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}

static inline uint32_t ak_le32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t ak_le64(const uint8_t *p)
{
    return p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24 |
           (uint64_t)p[4] << 32 | (uint64_t)p[5] << 40 | (uint64_t)p[6] << 48 |
           (uint64_t)p[7] << 56;
}

#endif
