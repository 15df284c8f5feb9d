/* Hex digits inside the core: one set of three functions per instruction set. */
#ifndef AK_HEX_H
#define AK_HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t needs; /* AK_CPU_* bits */
    /* How many digits of either case a text begins with. */
    size_t (*span)(const uint8_t *text, size_t size);
    /* Write the size / 2 bytes of that many digits, size even. False where one is no digit; what
     * is written then means nothing. */
    bool (*decode)(const uint8_t *text, size_t size, uint8_t *bytes);
    /* Write the 2 * size digits of that many bytes, in lower case. */
    void (*encode)(const uint8_t *bytes, size_t size, uint8_t *text);
} ak_hex_impl;

/* The best that the CPU has and ak_cpu_limit allows. */
const ak_hex_impl *ak_hex(void);

#endif
