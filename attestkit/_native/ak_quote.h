/* What quote.c has for the other files: checking many quotes, of which some are of one machine. */
#ifndef AK_QUOTE_H
#define AK_QUOTE_H

#include <stddef.h>

#include "ak.h"

/* An attestation key, and the report data of the QE that vouch for it. */
typedef struct {
    const uint8_t *key;  /* 64 bytes; NULL where there is none yet */
    const uint8_t *auth; /* the authentication data, hashed with the key */
    size_t auth_size;
    const uint8_t *vouched; /* 64 bytes */
} ak_binding;

/* Bindings that were hashed and found good, by the first byte of their key, zeros at first. The
 * quotes of a machine have the same until its QE makes another key, so in a batch most quotes need
 * no hash: comparing takes a tenth of the time. */
typedef struct {
    ak_binding by_key[256];
} ak_bindings;

/* As ak_quote_walk, among quotes whose bindings are known; adds this one's if it is good. Where
 * next is not NULL other quotes may follow: then its own lengths tell where it ends, and *next
 * where the zeros behind it do. */
ak_status ak_quote_walk_among(const uint8_t *data, size_t size, ak_bindings *known, ak_quote *quote,
                              size_t *next);

#endif
