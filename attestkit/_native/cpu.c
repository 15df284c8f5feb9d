/* CPU features, asked once when the library is loaded; a limit that tests may lower. */
#include "ak_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

static uint32_t detect(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    const unsigned ssse3_and_sse41 = 1U << 9 | 1U << 19;
    const bool sse = (c & ssse3_and_sse41) == ssse3_and_sse41;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return sse && (b & 1U << 29) ? AK_CPU_SHA_NI : 0;
}
#else
static uint32_t detect(void)
{
    return 0;
}
#endif

static uint32_t limit = UINT32_MAX;

uint32_t ak_cpu_features(void)
{
    static uint32_t cached = UINT32_MAX;
    /* Two threads may both ask; both write the same answer. */
    uint32_t found = __atomic_load_n(&cached, __ATOMIC_RELAXED);
    if (found == UINT32_MAX) {
        found = detect();
        __atomic_store_n(&cached, found, __ATOMIC_RELAXED);
    }
    return found & __atomic_load_n(&limit, __ATOMIC_RELAXED);
}

void ak_cpu_limit(uint32_t features)
{
    __atomic_store_n(&limit, features, __ATOMIC_RELAXED);
}
