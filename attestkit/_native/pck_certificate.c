/* Read PCK certificates in exactly the layout that Intel writes, without verifying them.
 *
 * The profile is that of "Intel SGX PCK Certificate and Certificate Revocation List Profile
 * Specification". DER has one encoding for a value, and nearly everything in the profile is
 * constant, so constants are compared, and every length is compared with what it spans. Whether
 * the public key is a point of the curve, and whether the signature is valid, is left to the
 * caller. */
#include "ak_pck.h"

#include <string.h>

enum {
    INTEGER = 0x02,
    SEQUENCE = 0x30,
    EXTENSIONS = 0xa3, /* [3] */
    SHORTEST_LONG = 256,
    SERIAL_SIZE = 20,
    SCALAR_SIZE = 32,
    KEY_ID_SIZE = 20,
    URL_SIZE = 110, /* so that all lengths around it have one byte */
};

static bool constant(ak_cursor *c, const void *expected, size_t size)
{
    const uint8_t *p;
    return ak_take(c, size, &p) && memcmp(p, expected, size) == 0;
}

/* Skip the bytes of an array, which must be next. */
#define CONSTANT(c, array) constant(c, array, sizeof(array))

static bool byte_between(ak_cursor *c, uint8_t least, uint8_t most, uint8_t *found)
{
    const uint8_t *p;
    if (!ak_take(c, 1, &p) || *p < least || *p > most)
        return false;
    *found = *p;
    return true;
}

/* Skip tag and two-byte length of an element, and get the end of its content. */
static bool open_long(ak_cursor *c, uint8_t tag, const uint8_t **end)
{
    const uint8_t *p;
    if (!ak_take(c, 4, &p) || p[0] != tag || p[1] != 0x82)
        return false;
    const size_t size = (size_t)(p[2] << 8 | p[3]);
    if (size < SHORTEST_LONG || size > ak_left(c))
        return false;
    *end = c->p + size;
    return true;
}

/* Get a positive INTEGER of at most `most` bytes, without the zero that precedes a high bit. */
static bool positive(ak_cursor *c, uint8_t most, ak_part *value)
{
    const uint8_t tag = INTEGER, *p;
    uint8_t size;
    if (!constant(c, &tag, 1) || !byte_between(c, 1, (uint8_t)(most + 1), &size) ||
        !ak_take(c, size, &p) || p[0] >= 0x80)
        return false;
    const bool padded = p[0] == 0;
    if (padded ? size == 1 || p[1] < 0x80 : size > most)
        return false;
    value->p = p + padded;
    value->size = (size_t)(size - padded);
    return true;
}

/* Get a Name with this common name and the attributes of all names in Intel's PKI. */
static bool name(ak_cursor *c, const char *common_name, ak_part *found)
{
    static const uint8_t attributes[] = "\x31\x1a\x30\x18\x06\x03\x55\x04\x0a\x0c\x11"
                                        "Intel Corporation"
                                        "\x31\x14\x30\x12\x06\x03\x55\x04\x07\x0c\x0b"
                                        "Santa Clara"
                                        "\x31\x0b\x30\x09\x06\x03\x55\x04\x08\x0c\x02"
                                        "CA"
                                        "\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02"
                                        "US";
    enum { ATTRIBUTES_SIZE = sizeof attributes - 1 };
    const uint8_t size = (uint8_t)strlen(common_name);
    const uint8_t head[] = {SEQUENCE, (uint8_t)(size + 11 + ATTRIBUTES_SIZE),
                            0x31,     (uint8_t)(size + 9),
                            SEQUENCE, (uint8_t)(size + 7),
                            0x06,     0x03,
                            0x55,     0x04,
                            0x03,     0x0c,
                            size};
    found->p = c->p;
    found->size = sizeof head + size + ATTRIBUTES_SIZE;
    return CONSTANT(c, head) && constant(c, common_name, size) &&
           constant(c, attributes, ATTRIBUTES_SIZE);
}

static bool issuer(ak_cursor *c, ak_part *found)
{
    ak_cursor start = *c;
    if (name(c, "Intel SGX PCK Platform CA", found))
        return true;
    *c = start;
    return name(c, "Intel SGX PCK Processor CA", found);
}

/* Read two decimal digits. */
static bool two_digits(const uint8_t *p, int *number)
{
    const int tens = p[0] - '0', ones = p[1] - '0';
    *number = 10 * tens + ones;
    return tens >= 0 && tens <= 9 && ones >= 0 && ones <= 9;
}

static int days_of_month(int year, int month)
{
    static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return days[month - 1] + (month == 2 && leap);
}

/* Days from 1970-01-01 to a date of the Gregorian calendar; years begin in March, so that the leap
 * day is the last one. */
static int64_t days_to(int year, int month, int day)
{
    const int y = month > 2 ? year : year - 1, m = (month + 9) % 12;
    return 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 719469;
}

/* Read a time with seconds: UTCTime for 1950 to 2049, GeneralizedTime from 2050 on (RFC 5280,
 * 4.1.2.5). */
static bool time_of(ak_cursor *c, int64_t *seconds)
{
    static const uint8_t utc[] = {0x17, 13}, generalized[] = {0x18, 15};
    const uint8_t *head, *p;
    int century = 0, parts[6];
    if (!ak_take(c, 2, &head) || !ak_take(c, head[1], &p))
        return false;
    const bool wide = memcmp(head, generalized, sizeof generalized) == 0;
    if (wide ? !two_digits(p, &century) : memcmp(head, utc, sizeof utc) != 0)
        return false;
    p += wide ? 2 : 0;
    for (int i = 0; i < 6; i++, p += 2)
        if (!two_digits(p, &parts[i]))
            return false;
    const int month = parts[1], day = parts[2], hour = parts[3], minute = parts[4];
    const int year = parts[0] + (wide ? 100 * century : parts[0] < 50 ? 2000 : 1900);
    if (*p != 'Z' || (wide && year < 2050) || month < 1 || month > 12 || day < 1 ||
        day > days_of_month(year, month) || hour > 23 || minute > 59 || parts[5] > 59)
        return false;
    *seconds = 86400 * days_to(year, month, day) + 3600 * hour + 60 * minute + parts[5];
    return true;
}

static bool validity(ak_cursor *c, ak_pck_certificate *found)
{
    const uint8_t *head;
    return ak_take(c, 2, &head) && head[0] == SEQUENCE && time_of(c, &found->not_before) &&
           time_of(c, &found->not_after) && c->p == head + 2 + head[1];
}

/* A P-256 key, uncompressed. */
static bool public_key(ak_cursor *c, ak_pck_certificate *found)
{
    static const uint8_t head[] = {SEQUENCE, 0x59, SEQUENCE, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48,
                                   0xce,     0x3d, 0x02,     0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
                                   0xce,     0x3d, 0x03,     0x01, 0x07, 0x03, 0x42, 0x00};
    return CONSTANT(c, head) && ak_take(c, AK_PCK_POINT_SIZE, &found->point) &&
           found->point[0] == 0x04;
}

/* One distribution point with one URL of visible ASCII characters. */
static bool distribution_points(ak_cursor *c)
{
    static const uint8_t oid[] = {0x06, 0x03, 0x55, 0x1d, 0x1f};
    /* OCTET STRING, SEQUENCE of points, point, distributionPoint, fullName, URL */
    static const uint8_t tags[] = {0x04, SEQUENCE, SEQUENCE, 0xa0, 0xa0, 0x86};
    enum { AROUND_URL = sizeof oid + 2 * sizeof tags };
    const uint8_t tag = SEQUENCE, *url;
    uint8_t size;
    if (!constant(c, &tag, 1) || !byte_between(c, AROUND_URL + 1, AROUND_URL + URL_SIZE, &size) ||
        !CONSTANT(c, oid))
        return false;
    size = (uint8_t)(size - sizeof oid);
    for (size_t i = 0; i < sizeof tags; i++) {
        size = (uint8_t)(size - 2);
        const uint8_t head[] = {tags[i], size};
        if (!CONSTANT(c, head))
            return false;
    }
    if (!ak_take(c, size, &url))
        return false;
    for (size_t i = 0; i < size; i++)
        if (url[i] < '!' || url[i] > '~')
            return false;
    return true;
}

/* The extensions before the SGX extension, in Intel's order. */
static bool standard_extensions(ak_cursor *c)
{
    static const uint8_t authority_key_id[] = {SEQUENCE, 0x1f, 0x06, 0x03, 0x55, 0x1d, 0x23,
                                               0x04,     0x18, 0x30, 0x16, 0x80, 0x14};
    static const uint8_t subject_key_id[] = {SEQUENCE, 0x1d, 0x06, 0x03, 0x55, 0x1d,
                                             0x0e,     0x04, 0x16, 0x04, 0x14};
    /* Key usage, critical: digitalSignature and nonRepudiation. Basic constraints, critical: not a
     * CA. */
    static const uint8_t constraints[] = {SEQUENCE, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01,
                                          0x01,     0xff, 0x04, 0x04, 0x03, 0x02, 0x06, 0xc0,
                                          SEQUENCE, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01,
                                          0x01,     0xff, 0x04, 0x02, 0x30, 0x00};
    const uint8_t *key_id;
    return CONSTANT(c, authority_key_id) && ak_take(c, KEY_ID_SIZE, &key_id) &&
           distribution_points(c) && CONSTANT(c, subject_key_id) &&
           ak_take(c, KEY_ID_SIZE, &key_id) && CONSTANT(c, constraints);
}

/* The SGX extension, 1.2.840.113741.1.13.1, is a SEQUENCE of entries. Each is an OID, which begins
 * with that of the extension, and a value. */
static const uint8_t SGX[] = {0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01};

/* The rest of an OID after SGX, of one or two bytes. */
typedef struct {
    uint8_t size;
    uint8_t bytes[2];
} arc;

/* Skip SEQUENCE and OID of an entry whose value, with tag and length, has this size. */
static bool entry(ak_cursor *c, arc of, size_t value_size)
{
    const uint8_t oid_size = (uint8_t)(sizeof SGX + of.size);
    const uint8_t head[] = {SEQUENCE, (uint8_t)(2 + oid_size + value_size), 0x06, oid_size};
    return CONSTANT(c, head) && CONSTANT(c, SGX) && constant(c, of.bytes, of.size);
}

static bool octets(ak_cursor *c, arc of, uint8_t size, const uint8_t **found)
{
    const uint8_t head[] = {0x04, size};
    return entry(c, of, sizeof head + size) && CONSTANT(c, head) && ak_take(c, size, found);
}

/* Read an entry with an INTEGER from 0 to 2^(8 * most) - 1. */
static bool number(ak_cursor *c, arc of, size_t most, uint32_t *found)
{
    const size_t head = 2 + 2 + sizeof SGX + of.size;
    const uint8_t *p;
    if (ak_left(c) < head + 3)
        return false;
    const uint8_t size = c->p[head + 1];
    if (size < 1 || size > most + 1 || !entry(c, of, 2U + size) || !ak_take(c, 2U + size, &p))
        return false;
    const bool padded = size > 1 && p[2] == 0;
    if (p[0] != INTEGER || p[2] >= 0x80 || (padded && p[3] < 0x80) || (size > most && !padded))
        return false;
    *found = 0;
    for (size_t i = 0; i < size; i++)
        *found = *found << 8 | p[2 + i];
    return true;
}

static bool tcb(ak_cursor *c, ak_pck_certificate *found)
{
    static const uint8_t oid[] = {0x06, sizeof SGX + 1};
    const uint8_t two = 2, *entry_end, *end;
    uint32_t svn;
    if (!open_long(c, SEQUENCE, &entry_end) || !CONSTANT(c, oid) || !CONSTANT(c, SGX) ||
        !constant(c, &two, 1) || !open_long(c, SEQUENCE, &end))
        return false;
    for (uint8_t i = 0; i < AK_PCK_COMPONENTS; i++) {
        if (!number(c, (arc){2, {2, (uint8_t)(i + 1)}}, 1, &svn))
            return false;
        found->components[i] = (uint8_t)svn;
    }
    return number(c, (arc){2, {2, 17}}, 2, &found->pcesvn) &&
           octets(c, (arc){2, {2, 18}}, AK_PCK_CPUSVN_SIZE, &found->cpusvn) && c->p == end &&
           c->p == entry_end;
}

/* The entries that certificates of the Platform CA have. */
static bool instance(ak_cursor *c, ak_pck_certificate *found)
{
    enum { FLAG_SIZE = 2 + 2 + sizeof SGX + 2 + 3 };
    static const uint8_t configuration[] = {SEQUENCE, AK_PCK_FLAGS * FLAG_SIZE};
    static const uint8_t boolean[] = {0x01, 0x01};
    const uint8_t *value;
    if (!octets(c, (arc){1, {6}}, AK_PCK_INSTANCE_SIZE, &found->instance_id) ||
        !entry(c, (arc){1, {7}}, sizeof configuration + AK_PCK_FLAGS * FLAG_SIZE) ||
        !CONSTANT(c, configuration))
        return false;
    for (uint8_t i = 0; i < AK_PCK_FLAGS; i++) {
        if (!entry(c, (arc){2, {7, (uint8_t)(i + 1)}}, 3) || !CONSTANT(c, boolean) ||
            !ak_take(c, 1, &value) || (*value != 0 && *value != 0xff))
            return false;
        found->flags[i] = *value != 0;
    }
    return true;
}

static bool sgx_entries(ak_cursor *c, const uint8_t *end, ak_pck_certificate *found)
{
    static const uint8_t enumerated[] = {0x0a, 0x01};
    if (!octets(c, (arc){1, {1}}, AK_PCK_PPID_SIZE, &found->ppid) || !tcb(c, found) ||
        !octets(c, (arc){1, {3}}, AK_PCK_PCEID_SIZE, &found->pceid) ||
        !octets(c, (arc){1, {4}}, AK_PCK_FMSPC_SIZE, &found->fmspc) ||
        !entry(c, (arc){1, {5}}, 3) || !CONSTANT(c, enumerated) ||
        !byte_between(c, 0, 2, &found->sgx_type))
        return false;
    found->instance_id = NULL;
    memset(found->flags, 0, sizeof found->flags);
    return (c->p == end || instance(c, found)) && c->p == end;
}

static bool sgx_extension(ak_cursor *c, const uint8_t *end, ak_pck_certificate *found)
{
    static const uint8_t oid[] = {0x06, sizeof SGX};
    const uint8_t *extension_end, *value_end, *entries_end;
    return open_long(c, SEQUENCE, &extension_end) && extension_end == end && CONSTANT(c, oid) &&
           CONSTANT(c, SGX) && open_long(c, 0x04, &value_end) && value_end == end &&
           open_long(c, SEQUENCE, &entries_end) && entries_end == end && sgx_entries(c, end, found);
}

static const uint8_t ECDSA_SHA256[] = {SEQUENCE, 0x0a, 0x06, 0x08, 0x2a, 0x86,
                                       0x48,     0xce, 0x3d, 0x04, 0x03, 0x02};

static bool tbs_certificate(ak_cursor *c, ak_pck_certificate *found)
{
    static const uint8_t version[] = {0xa0, 0x03, INTEGER, 0x01, 0x02};
    const uint8_t *end, *extensions_end, *inner_end;
    found->tbs.p = c->p;
    if (!open_long(c, SEQUENCE, &end) || !CONSTANT(c, version) ||
        !positive(c, SERIAL_SIZE, &found->serial) || !CONSTANT(c, ECDSA_SHA256) ||
        !issuer(c, &found->issuer) || !validity(c, found) ||
        !name(c, "Intel SGX PCK Certificate", &found->subject) || !public_key(c, found) ||
        !open_long(c, EXTENSIONS, &extensions_end) || extensions_end != end ||
        !open_long(c, SEQUENCE, &inner_end) || inner_end != end || !standard_extensions(c) ||
        !sgx_extension(c, end, found))
        return false;
    found->tbs.size = (size_t)(end - found->tbs.p);
    return true;
}

/* A BIT STRING with r and s, which must be positive. Its end is that of the certificate. */
static bool signature(ak_cursor *c, ak_part *found)
{
    ak_part scalar;
    const uint8_t *p;
    if (!ak_take(c, 3, &p) || p[0] != 0x03 || p[1] != ak_left(c) + 1 || p[1] >= 0x80 || p[2] != 0)
        return false;
    found->size = ak_left(c);
    return ak_take(c, 2, &found->p) && found->p[0] == SEQUENCE && found->p[1] == ak_left(c) &&
           positive(c, SCALAR_SIZE, &scalar) && positive(c, SCALAR_SIZE, &scalar) &&
           ak_left(c) == 0;
}

bool ak_pck_certificate_read(const uint8_t *der, size_t size, ak_pck_certificate *found)
{
    ak_cursor c = {der, der + size};
    const uint8_t *end;
    return open_long(&c, SEQUENCE, &end) && end == c.end && tbs_certificate(&c, found) &&
           CONSTANT(&c, ECDSA_SHA256) && signature(&c, &found->signature);
}
