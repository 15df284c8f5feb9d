/* CPU features, determined once, with a limit for tests; and the CPUID instruction, with which a
 * guest identifies its platform. */
#include <string.h>

#include "ak_cpu.h"

#if AK_X86_64
#include <cpuid.h>

/* XCR0: the registers that the operating system saves. The instruction XGETBV requires OSXSAVE
 * (CPUID 1, ECX bit 27). */
static uint32_t saved_registers(void)
{
    uint32_t low, high;
    /* volatile: must not be moved before the check of OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

static uint32_t detect(void)
{
    const uint32_t ymm_saved = 0x06, zmm_saved = 0xe6;
    const uint32_t avx512_f_dq_bw_vl = 1U << 16 | 1U << 17 | 1U << 30 | 1U << 31;
    uint32_t a, b, c, d, first, saved = 0, found = 0;

    if (!__get_cpuid(1, &a, &b, &first, &d) || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if (has(first, 1U << 27))
        saved = saved_registers();
    if (has(b, 1U << 29) && has(first, 1U << 9 | 1U << 19))
        found |= AK_CPU_SHA_NI;
    if (has(b, 1U << 8))
        found |= AK_CPU_BMI2;
    if (has(b, 1U << 5) && has(first, 1U << 28) && has(saved, ymm_saved))
        found |= AK_CPU_AVX2;
    if (has(b, avx512_f_dq_bw_vl) && has(found, AK_CPU_AVX2) && has(saved, zmm_saved))
        found |= AK_CPU_AVX512;
    if (has(c, 1U << 1) && has(found, AK_CPU_AVX512))
        found |= AK_CPU_VBMI;
    return found;
}

/* Return whether the CPU has a leaf; for others, CPUID returns unrelated data. */
static bool has_leaf(uint32_t leaf)
{
    const uint32_t range = leaf & 0xC0000000U;
    unsigned max, b, c, d;
    if (range == 0x40000000U) { /* hypervisor leaves, not available on bare metal */
        __cpuid(1, max, b, c, d);
        if (!(c & 1U << 31))
            return false;
    }
    __cpuid(range, max, b, c, d);
    return leaf == 0x40000000U || (range <= max && leaf <= max); /* old KVM sets max to 0 */
}

void ak_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers)
{
    memset(registers, 0, 4 * sizeof *registers);
    if (has_leaf(leaf))
        __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
}
#else
static uint32_t detect(void)
{
    return 0;
}

void ak_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers)
{
    (void)leaf;
    (void)subleaf;
    memset(registers, 0, 4 * sizeof *registers);
}
#endif

static uint32_t limit = UINT32_MAX;

uint32_t ak_cpu_features(void)
{
    static uint32_t cached = UINT32_MAX;
    /* If two threads run this concurrently, both write the same value. */
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
