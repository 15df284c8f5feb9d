/* Give files to functions of the core: replay FEATURES [TARGET STEP FILE]...
 *
 * FEATURES are AK_CPU_* bits that kernels may use. With a STEP a file is also given cut, at every
 * so many bytes. Each time the bytes are alone in memory, so that reading past them shows. A line
 * for each file tells the sum of all that was written: what ends the program is in the next one. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ak.h"
#include "targets.h"

static uint64_t run(const fuzz_target *target, const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size);
    if (copy == NULL && size != 0)
        abort();
    if (size != 0)
        memcpy(copy, data, size);
    const uint64_t sum = target->run(copy, size);
    free(copy);
    return sum;
}

static uint8_t *content_of(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        return NULL;
    *size = (size_t)ftell(file);
    uint8_t *data = malloc(*size + 1);
    rewind(file);
    if (data == NULL || fread(data, 1, *size, file) != *size)
        abort();
    fclose(file);
    return data;
}

int main(int count, char **words)
{
    if (count < 2 || count % 3 != 2)
        return 2;
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 2; i < count; i += 3) {
        size_t size;
        const fuzz_target *target = fuzz_target_of(words[i]);
        const size_t step = strtoul(words[i + 1], NULL, 10);
        uint8_t *data = content_of(words[i + 2], &size);
        if (target == NULL || data == NULL)
            return 2;
        ak_cpu_limit((uint32_t)strtoul(words[1], NULL, 0)); /* which a target may have changed */
        uint64_t sum = run(target, data, size);
        for (size_t cut = 0; step != 0 && cut < size; cut += step)
            sum = sum * 31 + run(target, data, cut);
        printf("%016" PRIx64 "\n", sum);
        free(data);
    }
    return 0;
}
