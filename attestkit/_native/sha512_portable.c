/* SHA-512 in portable C. */
#include "ak_sha512.h"

#define NAME(x) x##_portable
#define WORD uint64_t
#define LOAD(j, p, at) SET(j, ak_be64(*(p) + (at)), ak_be64(*(p) + (at) + 8))
#include "sha512_rounds.inc"

const ak_sha512_impl ak_sha512_portable = {
    .name = "portable",
    .lanes = 1,
    .least = 1,
    .block = block_portable,
    .extend = extend_portable,
};
