/* The C core's functions, each as one of any bytes. */
#ifndef FUZZ_TARGETS_H
#define FUZZ_TARGETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Run a function of the core, over and over what is in the bytes; return a sum of all it wrote. */
typedef uint64_t fuzz_function(const uint8_t *data, size_t size);

typedef struct {
    const char *name;
    fuzz_function *run;
    bool kernels; /* there is a kernel below it, so all levels of the CPU are worth comparing */
} fuzz_target;

/* The last one has no name. */
extern const fuzz_target fuzz_targets[];

/* The one of a name, or NULL. */
const fuzz_target *fuzz_target_of(const char *name);

/* quote_targets.c, pck_targets.c and piece_targets.c */
fuzz_function fuzz_quote, fuzz_among, fuzz_columns, fuzz_rows, fuzz_pck;
fuzz_function fuzz_pieces, fuzz_depth, fuzz_cbor, fuzz_evidence, fuzz_kernels, fuzz_sha256,
    fuzz_cpuid;

#define FUZZ_START 0xcbf29ce484222325 /* of FNV-1a */

/* Eight bytes at a time: a fuzzer spends much of its time here. */
static inline uint64_t fuzz_add(uint64_t sum, const void *data, size_t size)
{
    const uint8_t *p = data;
    uint64_t eight;

    for (; size >= 8; p += 8, size -= 8) {
        memcpy(&eight, p, 8);
        sum = (sum ^ eight) * 0x100000001b3;
        sum ^= sum >> 32;
    }
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ p[i]) * 0x100000001b3;
    return sum;
}

static inline uint64_t fuzz_add_number(uint64_t sum, uint64_t number)
{
    return fuzz_add(sum, &number, sizeof number);
}

static inline void *fuzz_room(size_t size)
{
    void *found = malloc(size);
    if (found == NULL && size != 0)
        abort();
    return found;
}

/* What cannot be, whatever the bytes are. */
static inline void fuzz_never(bool wrong)
{
    if (wrong)
        abort();
}

#endif
