/* Internal interface of pck_certificate.c. */
#ifndef AK_PCK_H
#define AK_PCK_H

#include "ak_cursor.h"

enum {
    AK_PCK_POINT_SIZE = 65,
    AK_PCK_PPID_SIZE = 16,
    AK_PCK_COMPONENTS = 16,
    AK_PCK_CPUSVN_SIZE = 16,
    AK_PCK_PCEID_SIZE = 2,
    AK_PCK_FMSPC_SIZE = 6,
    AK_PCK_INSTANCE_SIZE = 16,
    AK_PCK_FLAGS = 3,
};

/* A PCK certificate; all pointers point into its DER. */
typedef struct {
    ak_part serial;     /* positive, 1 to 20 bytes, big-endian */
    ak_part issuer;     /* Name, DER */
    ak_part subject;    /* Name, DER */
    int64_t not_before; /* Unix time */
    int64_t not_after;  /* Unix time; the last valid second */
    const uint8_t *point;
    ak_part tbs;       /* tbsCertificate, DER */
    ak_part signature; /* Ecdsa-Sig-Value, DER */
    const uint8_t *ppid;
    uint8_t components[AK_PCK_COMPONENTS]; /* TCB component SVNs */
    const uint8_t *cpusvn;
    const uint8_t *pceid;
    const uint8_t *fmspc;
    const uint8_t *instance_id;  /* NULL: absent, as are the flags */
    uint32_t pcesvn;             /* 0 to 65535 */
    uint8_t sgx_type;            /* 0 standard, 1 scalable, 2 scalable with integrity */
    uint8_t flags[AK_PCK_FLAGS]; /* dynamic platform, cached keys, SMT enabled: 0 or 1 */
} ak_pck_certificate;

/* Read a PCK certificate in DER. Returns false if it does not have exactly the layout that Intel
 * writes; it may be valid then, and *found is undefined. */
bool ak_pck_certificate_read(const uint8_t *der, size_t size, ak_pck_certificate *found);

#endif
