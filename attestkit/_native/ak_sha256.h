/* SHA-256 (FIPS 180-4) of what a quoting enclave reports: a key and some bytes after it. */
#ifndef AK_SHA256_H
#define AK_SHA256_H

#include <stddef.h>
#include <stdint.h>

/* Hash the 64 bytes of key, then size bytes of data, less than 2^29 - 64. */
void ak_sha256_key_and(const uint8_t *key, const uint8_t *data, size_t size, uint8_t digest[32]);

#endif
