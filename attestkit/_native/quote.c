/* Check Intel SGX and TDX quotes, and get the offsets of their parts.
 *
 * The layouts are those of Intel DCAP's quoting libraries (quote versions 3, 4 and 5). The checks
 * are in the order of the bytes. The first violated rule is reported, with the end of the data as
 * offset if they are truncated, else with the offset of the invalid value. */
#include "ak_cursor.h"
#include "ak_quote.h"
#include "ak_sha256.h"

#include <string.h>

enum {
    TEE_SGX = 0x00,
    TEE_TDX = 0x81,
    HEADER_SIZE = 48,
    ENCLAVE_REPORT_SIZE = 384,
    TD_10_SIZE = 584,
    TD_15_SIZE = 648,
    SIGNATURE_SIZE = 64,
    KEY_SIZE = 64,
    REPORT_DATA = 320, /* offset in an enclave report; 64 bytes */
};

static const uint8_t INTEL[16] = {0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9,
                                  0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07};

/* State that the checks share. */
typedef struct {
    const uint8_t *start;
    ak_cursor c;       /* the unchecked data */
    ak_quote *quote;   /* the result */
    unsigned version;  /* 3, 4 or 5 */
    uint32_t tee_type; /* TEE_SGX or TEE_TDX */
    const uint8_t *attestation_key;
} walk;

static size_t offset(const walk *w, const uint8_t *p)
{
    return (size_t)(p - w->start);
}

/* Set the offset of an error, and return its status. */
static ak_status broken(walk *w, ak_status why, const uint8_t *at)
{
    w->quote->at = offset(w, at);
    return why;
}

static ak_status header(walk *w)
{
    const uint8_t *p;
    if (!ak_take(&w->c, HEADER_SIZE, &p))
        return broken(w, AK_E_SHORT_HEADER, w->c.end);
    w->version = ak_le16(p);
    if (w->version < 3 || w->version > 5)
        return broken(w, AK_E_VERSION, p);
    if (ak_le16(p + 2) != 2)
        return broken(w, AK_E_ATT_KEY_TYPE, p + 2);
    if (memcmp(p + 12, INTEL, sizeof INTEL) != 0)
        return broken(w, AK_E_QE_VENDOR_ID, p + 12);
    w->tee_type = ak_le32(p + 4);
    if (w->tee_type != TEE_SGX && (w->tee_type != TEE_TDX || w->version == 3))
        return broken(w, AK_E_TEE_TYPE, p + 4);
    return AK_OK;
}

/* The size of the body, which depends on the TEE type or, from version 5 on, on a descriptor. Body
 * type 4 (TD 1.5 with migration history) is not supported for lack of a signed sample. */
static ak_status body_size(walk *w, uint32_t *size)
{
    static const uint32_t sizes[] = {0, ENCLAVE_REPORT_SIZE, TD_10_SIZE, TD_15_SIZE};
    const uint8_t *p;
    *size = w->tee_type == TEE_SGX ? ENCLAVE_REPORT_SIZE : TD_10_SIZE;
    if (w->version < 5)
        return AK_OK;
    if (!ak_take(&w->c, 6, &p))
        return broken(w, AK_E_SHORT_BODY_DESCRIPTOR, w->c.end);
    const unsigned type = ak_le16(p);
    if (type < 1 || type > 3)
        return broken(w, AK_E_BODY_TYPE, p);
    *size = ak_le32(p + 2);
    if (*size != sizes[type])
        return broken(w, AK_E_BODY_SIZE, p + 2);
    if ((type == 1) != (w->tee_type == TEE_SGX))
        return broken(w, AK_E_BODY_TEE_MISMATCH, p);
    return AK_OK;
}

static ak_status body(walk *w)
{
    const uint8_t *p;
    uint32_t size;
    const ak_status status = body_size(w, &size);
    if (status != AK_OK)
        return status;
    if (!ak_take(&w->c, size, &p))
        return broken(w, AK_E_SHORT_BODY, w->c.end);
    w->quote->body = offset(w, p);
    w->quote->body_size = size;
    return AK_OK;
}

/* Skip everything up to the end of the signature data, which is the end of the quote. */
static ak_status extent(walk *w)
{
    const uint8_t *p;
    ak_status status;
    if ((status = header(w)) != AK_OK || (status = body(w)) != AK_OK)
        return status;
    if (!ak_take(&w->c, 4, &p))
        return broken(w, AK_E_SHORT_SIG_LEN, w->c.end);
    const uint32_t size = ak_le32(p);
    w->quote->signature = offset(w, w->c.p);
    if (!ak_take(&w->c, size, &p))
        return broken(w, AK_E_SIG_DATA_TRUNCATED, w->c.end);
    w->quote->end = offset(w, w->c.p);
    return AK_OK;
}

/* Signature and attestation key; from version 4 on, the outer certification data header. */
static ak_status signature(walk *w)
{
    const uint8_t *p;
    if (!ak_take(&w->c, SIGNATURE_SIZE, &p))
        return broken(w, AK_E_SIG, w->c.end);
    if (!ak_take(&w->c, KEY_SIZE, &w->attestation_key))
        return broken(w, AK_E_ATTESTATION_KEY, w->c.end);
    if (w->version == 3)
        return AK_OK;
    if (!ak_take(&w->c, 6, &p))
        return broken(w, AK_E_CERT_DATA_HEADER, w->c.end);
    if (ak_le16(p) != 6)
        return broken(w, AK_E_OUTER_CERT_TYPE, p);
    if (ak_le32(p + 2) != ak_left(&w->c))
        return broken(w, AK_E_OUTER_CERT_SIZE, p + 2);
    return AK_OK;
}

static ak_status quoting_enclave(walk *w)
{
    const uint8_t *p;
    if (!ak_take(&w->c, ENCLAVE_REPORT_SIZE, &p))
        return broken(w, AK_E_QE_REPORT, w->c.end);
    w->quote->qe_report = offset(w, p);
    if (!ak_take(&w->c, SIGNATURE_SIZE, &p))
        return broken(w, AK_E_QE_REPORT_SIG, w->c.end);
    if (!ak_take(&w->c, 2, &p))
        return broken(w, AK_E_QE_AUTH_LEN, w->c.end);
    const uint16_t size = ak_le16(p);
    if (!ak_take(&w->c, size, &p))
        return broken(w, AK_E_QE_AUTH_DATA, w->c.end);
    w->quote->qe_auth_data = offset(w, p);
    w->quote->qe_auth_data_size = size;
    return AK_OK;
}

static ak_status certification(walk *w)
{
    const uint8_t *p;
    if (!ak_take(&w->c, 6, &p))
        return broken(w, AK_E_INNER_CERT_HEADER, w->c.end);
    const unsigned type = ak_le16(p);
    if (type < 1 || type > 5)
        return broken(w, AK_E_INNER_CERT_TYPE, p);
    if (ak_le32(p + 2) != ak_left(&w->c))
        return broken(w, AK_E_INNER_CERT_SIZE, p + 2);
    w->quote->certification_type = type;
    w->quote->certification = offset(w, w->c.p);
    return AK_OK;
}

static bool same_binding(const ak_binding *a, const ak_binding *b)
{
    return a->key != NULL && a->auth_size == b->auth_size &&
           memcmp(a->key, b->key, KEY_SIZE) == 0 && memcmp(a->vouched, b->vouched, 64) == 0 &&
           memcmp(a->auth, b->auth, b->auth_size) == 0;
}

/* The QE report data must be the hash of attestation key and QE authentication data. */
static ak_status binding(walk *w, ak_bindings *known)
{
    static const uint8_t zeros[32];
    const ak_binding found = {
        .key = w->attestation_key,
        .auth = w->start + w->quote->qe_auth_data,
        .auth_size = (size_t)w->quote->qe_auth_data_size,
        .vouched = w->start + w->quote->qe_report + REPORT_DATA,
    };
    ak_binding *place = known == NULL ? NULL : &known->by_key[found.key[0]];
    uint8_t digest[32];
    if (place != NULL && same_binding(place, &found))
        return AK_OK;
    ak_sha256_key_and(found.key, found.auth, found.auth_size, digest);
    if (memcmp(found.vouched, digest, 32) != 0 || memcmp(found.vouched + 32, zeros, 32) != 0)
        return broken(w, AK_E_QE_BINDING, found.vouched);
    if (place != NULL)
        *place = found;
    return AK_OK;
}

/* The checks after the end of the quote is known. */
static ak_status inside(walk *w, ak_bindings *known)
{
    ak_status status;
    w->c = (ak_cursor){w->start + w->quote->signature, w->start + w->quote->end};
    if ((status = signature(w)) != AK_OK || (status = quoting_enclave(w)) != AK_OK ||
        (status = certification(w)) != AK_OK)
        return status;
    return binding(w, known);
}

ak_status ak_quote_walk_among(const uint8_t *data, size_t size, ak_bindings *known, ak_quote *quote,
                              size_t *next)
{
    walk w = {.start = data, .c = {data, data + size}, .quote = quote};
    if (next == NULL && size > AK_QUOTE_MAX_SIZE)
        return broken(&w, AK_E_TOO_LONG, data + AK_QUOTE_MAX_SIZE);
    const ak_status status = extent(&w);
    if (status != AK_OK)
        return status;
    const uint8_t *other = ak_first_nonzero(w.c.p, w.c.end);
    if (next == NULL && other != w.c.end)
        return broken(&w, AK_E_TRAILING_BYTES, other);
    if (offset(&w, other) > AK_QUOTE_MAX_SIZE)
        return broken(&w, AK_E_TOO_LONG, data + AK_QUOTE_MAX_SIZE);
    if (next != NULL)
        *next = offset(&w, other);
    return inside(&w, known);
}

ak_status ak_quote_walk(const uint8_t *data, size_t size, ak_quote *quote)
{
    return ak_quote_walk_among(data, size, NULL, quote, NULL);
}
