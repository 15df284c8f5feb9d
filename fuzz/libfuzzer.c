/* A function of the core under libFuzzer; the build says which: -DTARGET='"ccel"'. */
#include <stdlib.h>

#include "targets.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const fuzz_target *target;

    if (target == NULL && (target = fuzz_target_of(TARGET)) == NULL)
        abort();
    (void)target->run(data, size);
    return 0;
}
