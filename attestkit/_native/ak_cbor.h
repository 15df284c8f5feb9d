/* The structure of CBOR (RFC 8949). */
#ifndef AK_CBOR_H
#define AK_CBOR_H

#include "ak.h"

/* Values and chunks of strings; arrays and maps around a value; entries of a map. */
enum { AK_CBOR_MAX_VALUES = 65536, AK_CBOR_MAX_DEPTH = 16, AK_CBOR_MAX_ENTRIES = 4096 };

/* Check that bytes are one value of integers, strings, false, true, null, arrays, and maps without
 * duplicate keys, within the limits. A decoder without checks of its own may then read it.
 *
 * canonical: 1 if lengths must be definite, and heads in their shortest form. keys: scratch space
 * for the keys of open maps. If there are more of them than `room`, the status is AK_E_CBOR_VALUES;
 * AK_CBOR_MAX_VALUES are sufficient. at: the offset of the error. */
ak_status ak_cbor_check(const uint8_t *data, size_t size, int canonical, const uint8_t **keys,
                        size_t room, size_t *at);

#endif
