/* SHA-256 (FIPS 180-4) of an attestation key and QE authentication data. */
#ifndef AK_SHA256_H
#define AK_SHA256_H

#include <stddef.h>
#include <stdint.h>

/* Hash 64 bytes of key, followed by size bytes of data; size must be less than 2^29 - 64. */
void ak_sha256_key_and(const uint8_t *key, const uint8_t *data, size_t size, uint8_t digest[32]);

#endif
