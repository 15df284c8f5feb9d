/* Internal hex functions: two functions per instruction set. */
#ifndef AK_HEX_H
#define AK_HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t needs; /* AK_CPU_* bits */
    /* Return the number of hex digits, in upper or lower case, at the start of a text. */
    size_t (*span)(const uint8_t *text, size_t size);
    /* Decode `size` digits, an even number. Returns false, with undefined output, if a character is
     * not a digit. */
    bool (*decode)(const uint8_t *text, size_t size, uint8_t *bytes);
} ak_hex_impl;

/* The best implementation that the CPU supports and ak_cpu_limit allows. */
const ak_hex_impl *ak_hex(void);

#endif
