/* The C core's functions, each as one of any bytes. */
#ifndef FUZZ_TARGETS_H
#define FUZZ_TARGETS_H

#include <stddef.h>
#include <stdint.h>

/* Run a function of the core, over and over what is in the bytes; return a sum of all it wrote. */
typedef uint64_t fuzz_function(const uint8_t *data, size_t size);

typedef struct {
    const char *name;
    fuzz_function *run;
} fuzz_target;

/* The last one has no name. */
extern const fuzz_target fuzz_targets[];

/* The one of a name, or NULL. */
const fuzz_target *fuzz_target_of(const char *name);

#endif
