/* The table of SHA-512 implementations with the features they need, best first; the last needs
 * none. */
#ifndef AK_DISPATCH_H
#define AK_DISPATCH_H

#include "ak_sha512.h"

static const ak_sha512_impl *const ak_sha512_impls[] = {
#if AK_X86_64
    &ak_sha512_avx512_x8, &ak_sha512_avx512_x4, &ak_sha512_avx512,
    &ak_sha512_avx2_x4,   &ak_sha512_avx2,
#endif
    &ak_sha512_portable,
};

/* Return the implementation for this number of messages, at least one. */
static inline const ak_sha512_impl *ak_sha512_for(size_t messages)
{
    const uint32_t features = ak_cpu_features();
    const ak_sha512_impl *const *impl = ak_sha512_impls;
    while (((*impl)->needs & ~features) != 0 || (*impl)->least > messages)
        impl++;
    return *impl;
}

#endif
