/* PCK certificates: parts follow each other, and a certificate is all that it needs to be one. */
#include "ak_pck.h"
#include "targets.h"

static uint64_t add_part(uint64_t sum, ak_part part)
{
    return fuzz_add(fuzz_add_number(sum, part.size), part.p, part.size);
}

/* Parts are in the order of the DER, and the signed part and the signature take all of it but the
 * bytes around them. */
static void see_parts(const uint8_t *data, size_t size, const ak_pck_certificate *c)
{
    const ak_part parts[] = {
        c->serial,
        c->issuer,
        c->subject,
        {c->point, AK_PCK_POINT_SIZE},
        {c->ppid, AK_PCK_PPID_SIZE},
        {c->cpusvn, AK_PCK_CPUSVN_SIZE},
        {c->pceid, AK_PCK_PCEID_SIZE},
        {c->fmspc, AK_PCK_FMSPC_SIZE},
    };
    const uint8_t *at = c->tbs.p, *end = c->tbs.p + c->tbs.size;

    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; at = parts[i].p + parts[i].size, i++)
        fuzz_never(parts[i].p < at);
    fuzz_never(at > end || (c->instance_id != NULL && c->instance_id < at));
    fuzz_never(c->instance_id != NULL && c->instance_id + AK_PCK_INSTANCE_SIZE > end);
    fuzz_never(c->tbs.p != data + 4 || c->signature.p != end + 15);
    fuzz_never(c->signature.p + c->signature.size != data + size);
    fuzz_never(c->serial.size < 1 || c->serial.size > 20 || c->serial.p[0] == 0);
}

static uint64_t sum_of(const ak_pck_certificate *c)
{
    uint64_t sum = add_part(add_part(add_part(FUZZ_START, c->serial), c->issuer), c->subject);

    sum = add_part(add_part(sum, c->tbs), c->signature);
    sum = fuzz_add_number(fuzz_add_number(sum, (uint64_t)c->not_before), (uint64_t)c->not_after);
    sum = fuzz_add(sum, c->components, sizeof c->components);
    sum = fuzz_add(sum, c->flags, sizeof c->flags);
    return fuzz_add_number(fuzz_add_number(sum, c->pcesvn), c->sgx_type);
}

uint64_t fuzz_pck(const uint8_t *data, size_t size)
{
    static const int64_t first = -631152000, last = 253402300799; /* 1950 to 9999 */
    ak_pck_certificate found, again;

    if (!ak_pck_certificate_read(data, size, &found))
        return FUZZ_START;
    see_parts(data, size, &found);
    fuzz_never(found.not_before < first || found.not_before > last);
    fuzz_never(found.not_after < first || found.not_after > last);
    fuzz_never(found.pcesvn > UINT16_MAX || found.sgx_type > 2);
    for (size_t i = 0; i < AK_PCK_FLAGS; i++)
        fuzz_never(found.flags[i] > (found.instance_id != NULL));
    fuzz_never(ak_pck_certificate_read(data, size - 1, &again));
    return sum_of(&found);
}
