/*
 * Stub of NVIDIA's libnvidia-nscq.so.2: the calls for evidence of NVSwitches.
 *
 * Names, structures and codes are those of NSCQ, as in NVIDIA's nv-attestation-sdk (PyPI). All
 * answers come from the server.
 */
#include "stub_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_SWITCHES 64u
#define CERTIFICATE_SIZE 0x1400u
#define REPORT_SIZE 0x2000u
#define UUID_SIZE 16u
#define LABEL_SIZE 64u
#define MAX_PATH 128u

typedef int8_t nscq_rc_t;

enum {
    NSCQ_SUCCESS = 0,
    NSCQ_ERROR_NOT_IMPLEMENTED = -1,
    NSCQ_ERROR_INVALID_UUID = -2,
    NSCQ_ERROR_OVERFLOW = -4,
    NSCQ_ERROR_UNEXPECTED_VALUE = -5,
    NSCQ_ERROR_DRV = -7,
    NSCQ_ERROR_UNSPECIFIED = -128,
};

struct uuid {
    uint8_t bytes[UUID_SIZE];
};

struct label {
    char data[LABEL_SIZE];
};

struct report {
    uint32_t size;
    uint8_t data[REPORT_SIZE];
};

struct certificate {
    uint8_t data[CERTIFICATE_SIZE];
    uint32_t size;
};

struct session {
    uint8_t nonce[STUB_MAX_INPUT];
    uint32_t nonce_size;
};

struct session_result {
    nscq_rc_t rc;
    struct session *session;
};

typedef void (*any_callback)(void);
typedef void (*uuid_callback)(const struct uuid *, nscq_rc_t, const struct uuid *, void *);
typedef void (*byte_callback)(const struct uuid *, nscq_rc_t, int8_t, void *);
typedef void (*certificate_callback)(const struct uuid *, nscq_rc_t, struct certificate, void *);
typedef void (*report_callback)(const struct uuid *, nscq_rc_t, struct report, void *);

/* A callback with its argument. */
struct observer {
    any_callback function;
    void *data;
};

_Static_assert(sizeof(struct report) == 4 + 0x2000, "report");
_Static_assert(sizeof(struct certificate) == 4 + 0x1400, "certificate");
_Static_assert(MAX_SWITCHES *UUID_SIZE <= STUB_MAX_OUTPUT, "uuids");

static nscq_rc_t result(const struct stub_answer *answer)
{
    if (answer->code == STUB_CONNECT_FAILED)
        return NSCQ_ERROR_DRV;
    return answer->code < INT8_MIN || answer->code > INT8_MAX ? NSCQ_ERROR_UNSPECIFIED
                                                              : (nscq_rc_t)answer->code;
}

EXPORT const uint32_t nscq_api_version = 2u << 24;

EXPORT nscq_rc_t nscq_uuid_to_label(const struct uuid *uuid, struct label *label, uint32_t flags)
{
    const uint8_t *b;

    (void)flags;
    if (!uuid || !label)
        return NSCQ_ERROR_INVALID_UUID;
    b = uuid->bytes;
    memset(label, 0, sizeof *label);
    snprintf(label->data, sizeof label->data,
             "SWX-%02X%02X%02X%02X-%02X%02X-%02X%02X-%02X%02X-%02X%02X%02X%02X%02X%02X", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return NSCQ_SUCCESS;
}

EXPORT struct session_result nscq_session_create(uint32_t flags)
{
    struct session_result created = {NSCQ_ERROR_UNSPECIFIED, NULL};
    struct stub_answer answer;

    stub_ask(STUB_SWITCH_SESSION, flags, NULL, 0, &answer);
    created.rc = result(&answer);
    if (created.rc >= 0) {
        created.session = calloc(1, sizeof *created.session);
        if (!created.session)
            created.rc = NSCQ_ERROR_UNSPECIFIED;
    }
    return created;
}

EXPORT void nscq_session_destroy(struct session *session)
{
    free(session);
}

EXPORT nscq_rc_t nscq_session_set_input(struct session *session, uint32_t flags, const void *input,
                                        uint32_t size)
{
    (void)flags;
    if (!session || (size && !input))
        return NSCQ_ERROR_UNEXPECTED_VALUE;
    if (size > sizeof session->nonce)
        return NSCQ_ERROR_OVERFLOW;
    if (size)
        memcpy(session->nonce, input, size);
    session->nonce_size = size;
    return NSCQ_SUCCESS;
}

static void observe_byte(enum stub_call call, uint32_t index, const struct uuid *uuid,
                         const struct observer *observer)
{
    struct stub_answer answer;
    int8_t value = 0;
    nscq_rc_t rc;

    stub_ask(call, index, NULL, 0, &answer);
    rc = result(&answer);
    if (rc >= 0 && !stub_copy(&answer, &value, sizeof value))
        rc = NSCQ_ERROR_UNSPECIFIED;
    ((byte_callback)observer->function)(uuid, rc, value, observer->data);
}

static void observe_certificate(uint32_t index, const struct uuid *uuid,
                                const struct observer *observer)
{
    struct certificate certificate = {{0}, 0};
    struct stub_answer answer;
    nscq_rc_t rc;

    stub_ask(STUB_SWITCH_CERTIFICATE, index, NULL, 0, &answer);
    rc = result(&answer);
    if (rc >= 0 && answer.size > CERTIFICATE_SIZE)
        rc = NSCQ_ERROR_OVERFLOW;
    if (rc >= 0) {
        certificate.size = answer.size;
        memcpy(certificate.data, answer.data, answer.size);
    }
    ((certificate_callback)observer->function)(uuid, rc, certificate, observer->data);
}

static void observe_report(const struct session *session, uint32_t index, const struct uuid *uuid,
                           const struct observer *observer)
{
    struct report report = {0, {0}};
    struct stub_answer answer;
    nscq_rc_t rc;

    stub_ask(STUB_SWITCH_REPORT, index, session->nonce, session->nonce_size, &answer);
    rc = result(&answer);
    if (rc >= 0) {
        report.size = answer.size;
        memcpy(report.data, answer.data, answer.size);
    }
    ((report_callback)observer->function)(uuid, rc, report, observer->data);
}

/* Return the value that a path ends with, or 0 for an unknown one. */
static enum stub_call call_of(const char *value)
{
    static const struct {
        const char *value;
        enum stub_call call;
    } known[] = {
        {"/id/arch", STUB_SWITCH_ARCHITECTURE},
        {"/config/pcie_mode", STUB_SWITCH_PCIE_MODE},
        {"/config/certificate", STUB_SWITCH_CERTIFICATE},
        {"/config/attestation_report", STUB_SWITCH_REPORT},
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(value, known[i].value))
            return known[i].call;
    return 0;
}

/* Return whether the first part of a path, of `length` bytes, names all switches, or this one. */
static int is_named(const char *name, size_t length, const struct uuid *uuid)
{
    static const char all[] = "{nvswitch}";
    struct label label;

    if (length == sizeof all - 1 && !memcmp(name, all, length))
        return 1;
    nscq_uuid_to_label(uuid, &label, 0);
    return length == strlen(label.data) && !memcmp(name, label.data, length);
}

/* Report the value of a switch to the observer; without a call, its UUID. */
static void observe_switch(const struct session *session, enum stub_call call, uint32_t index,
                           const struct uuid *uuid, const struct observer *observer)
{
    if (!call)
        ((uuid_callback)observer->function)(uuid, NSCQ_SUCCESS, uuid, observer->data);
    else if (call == STUB_SWITCH_CERTIFICATE)
        observe_certificate(index, uuid, observer);
    else if (call == STUB_SWITCH_REPORT)
        observe_report(session, index, uuid, observer);
    else
        observe_byte(call, index, uuid, observer);
}

EXPORT nscq_rc_t nscq_session_path_observe(struct session *session, const char *path,
                                           any_callback function, void *data, uint32_t flags)
{
    const struct observer observer = {function, data};
    struct stub_answer switches;
    enum stub_call call = 0;
    const char *value = NULL;
    nscq_rc_t rc;

    (void)flags;
    if (!session || !path || !function || strnlen(path, MAX_PATH) == MAX_PATH || *path != '/')
        return NSCQ_ERROR_UNEXPECTED_VALUE;
    if (strcmp(path, "/drv/nvswitch/{device}/uuid")) {
        value = strchr(path + 1, '/');
        call = value ? call_of(value) : 0;
        if (!call)
            return NSCQ_ERROR_NOT_IMPLEMENTED;
    }
    stub_ask(STUB_SWITCH_UUIDS, 0, NULL, 0, &switches);
    rc = result(&switches);
    if (rc < 0)
        return rc;
    if (switches.size % UUID_SIZE || switches.size / UUID_SIZE > MAX_SWITCHES)
        return NSCQ_ERROR_UNSPECIFIED;
    for (uint32_t i = 0; i < switches.size / UUID_SIZE; i++) {
        struct uuid uuid;

        memcpy(uuid.bytes, switches.data + i * UUID_SIZE, UUID_SIZE);
        if (!value || is_named(path + 1, (size_t)(value - path) - 1, &uuid))
            observe_switch(session, call, i, &uuid, &observer);
    }
    return NSCQ_SUCCESS;
}
