/* A function of the core under libFuzzer; the environment says which: FUZZ_TARGET=ccel.
 *
 * Where there are kernels below it, each input is given to it twice: with all that the CPU has, and
 * with less, as the input has it. Both must write the same. */
#include <stdio.h>

#include "ak.h"
#include "targets.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* AK_CPU_* bits: nothing; SHA-NI, BMI2 and AVX2; these with AVX-512. */
static const uint32_t levels[] = {0, 0x07, 0, 0x0f};

/* Not by chance, so that a failing input fails again. */
static uint32_t level_for(const uint8_t *data, size_t size)
{
    size_t mixed = size;
    for (size_t at = 0; at < size; at += size / 8 + 1)
        mixed += data[at];
    return levels[mixed % (sizeof levels / sizeof levels[0])];
}

static const fuzz_target *asked(void)
{
    const char *name = getenv("FUZZ_TARGET");
    const fuzz_target *target = name == NULL ? NULL : fuzz_target_of(name);

    if (target == NULL) {
        (void)fprintf(stderr, "FUZZ_TARGET is %s, which is no target\n", name ? name : "not set");
        exit(2);
    }
    return target;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const fuzz_target *target;

    if (target == NULL)
        target = asked();
    const uint64_t sum = target->run(data, size);
    if (target->kernels) {
        ak_cpu_limit(level_for(data, size));
        fuzz_never(target->run(data, size) != sum);
        ak_cpu_limit(UINT32_MAX);
    }
    return 0;
}
