/*
 * Make every call of the stub libraries, with buffers of exactly the size that they are told.
 *
 * Usage: stub_calls ROUNDS. The program is linked with the stubs' sources under sanitizers; it ends
 * with 1 if a call returns a value out of range.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct uuid {
    uint8_t bytes[16];
};

struct report {
    uint32_t size;
    uint8_t data[0x2000];
};

struct certificate {
    uint8_t data[0x1400];
    uint32_t size;
};

struct session_result {
    int8_t rc;
    void *session;
};

typedef void (*any_callback)(void);

int nvmlInit_v2(void);
int nvmlShutdown(void);
const char *nvmlErrorString(int code);
int nvmlSystemGetDriverVersion(char *text, unsigned length);
int nvmlSystemGetNVMLVersion(char *text, unsigned length);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device);
int nvmlDeviceGetName(void *device, char *text, unsigned length);
int nvmlDeviceGetUUID(void *device, char *text, unsigned length);
int nvmlDeviceGetVbiosVersion(void *device, char *text, unsigned length);
int nvmlDeviceGetBoardId(void *device, unsigned *id);
int nvmlDeviceGetArchitecture(void *device, unsigned *architecture);
int nvmlDeviceGetPdi(void *device, void *pdi);
int nvmlDeviceGetPciInfo_v3(void *device, void *pci);
int nvmlDeviceGetUtilizationRates(void *device, void *rates);
int nvmlDeviceGetMemoryInfo(void *device, void *memory);
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius);
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts);
int nvmlSystemGetConfComputeCapabilities(void *caps);
int nvmlSystemGetConfComputeState(void *state);
int nvmlSystemGetConfComputeSettings(void *settings);
int nvmlSystemGetConfComputeGpusReadyState(unsigned *ready);
int nvmlSystemSetConfComputeGpusReadyState(unsigned ready);
int nvmlDeviceGetConfComputeGpuCertificate(void *device, void *certificate);
int nvmlDeviceGetConfComputeGpuAttestationReport(void *device, void *report);
struct session_result nscq_session_create(uint32_t flags);
void nscq_session_destroy(void *session);
int8_t nscq_session_set_input(void *session, uint32_t flags, const void *input, uint32_t size);
int8_t nscq_session_path_observe(void *session, const char *path, any_callback function, void *data,
                                 uint32_t flags);

static int failures;

static void check(int code)
{
    const char *text = nvmlErrorString(code);

    if (code < 0 || code > 999 || !*text) {
        fprintf(stderr, "code %d\n", code);
        failures++;
    }
}

/* A buffer of `size` bytes that begins with a version; the caller frees it. */
static void *structure(size_t size, unsigned version)
{
    uint8_t *buffer = calloc(1, size);

    if (!buffer)
        exit(2);
    memcpy(buffer, &version, sizeof version);
    return buffer;
}

static void call_texts(void *device)
{
    static const unsigned lengths[] = {1, 16, 96};

    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char *text = structure(lengths[i] < 4 ? 4 : lengths[i], 0);

        check(nvmlSystemGetDriverVersion(text, lengths[i]));
        check(nvmlSystemGetNVMLVersion(text, lengths[i]));
        check(nvmlDeviceGetName(device, text, lengths[i]));
        check(nvmlDeviceGetUUID(device, text, lengths[i]));
        check(nvmlDeviceGetVbiosVersion(device, text, lengths[i]));
        free(text);
    }
}

static void call_structure(int (*call)(void *), size_t size, unsigned version)
{
    void *buffer = structure(size, version);

    check(call(buffer));
    free(buffer);
}

static void call_device(void *device, int (*call)(void *, void *), size_t size, unsigned version)
{
    uint32_t used[3];
    void *buffer = structure(size, version);
    int code = call(device, buffer);

    check(code);
    memcpy(used, buffer, sizeof used);
    /* Sizes that a structure states fit into its buffer. */
    if (!code && size > 1000 && (used[1] > size - 12 || used[0] > size))
        failures++;
    free(buffer);
}

static int board_id(void *device, void *id)
{
    return nvmlDeviceGetBoardId(device, id);
}

static int architecture(void *device, void *found)
{
    return nvmlDeviceGetArchitecture(device, found);
}

static int temperature(void *device, void *found)
{
    return nvmlDeviceGetTemperature(device, 0, found);
}

static int power_usage(void *device, void *found)
{
    return nvmlDeviceGetPowerUsage(device, found);
}

static void call_nvml(void)
{
    void *device = NULL;
    unsigned count = 0, ready = 0;

    check(nvmlInit_v2());
    check(nvmlDeviceGetCount_v2(&count));
    if (count > 64)
        failures++;
    check(nvmlDeviceGetHandleByIndex_v2(0, &device));
    check(nvmlDeviceGetHandleByIndex_v2(~0u, &device));
    call_texts(device);
    call_device(device, board_id, 12, 0);
    call_device(device, architecture, 12, 0);
    call_device(device, nvmlDeviceGetPdi, 16, 0x1000010);
    call_device(device, nvmlDeviceGetPciInfo_v3, 68, 0);
    call_device(device, nvmlDeviceGetUtilizationRates, 12, 0);
    call_device(device, nvmlDeviceGetMemoryInfo, 24, 0);
    call_device(device, temperature, 12, 0);
    call_device(device, power_usage, 12, 0);
    call_structure(nvmlSystemGetConfComputeCapabilities, 8, 0);
    call_structure(nvmlSystemGetConfComputeState, 12, 0);
    call_structure(nvmlSystemGetConfComputeSettings, 20, 0x1000014);
    check(nvmlSystemGetConfComputeGpusReadyState(&ready));
    check(nvmlSystemSetConfComputeGpusReadyState(1));
    call_device(device, nvmlDeviceGetConfComputeGpuCertificate, 8 + 0x1000 + 0x1400, 0);
    call_device(device, nvmlDeviceGetConfComputeGpuAttestationReport, 12332, 0);
    check(nvmlShutdown());
}

static void observe_uuid(const struct uuid *device, int8_t rc, const struct uuid *uuid, void *data)
{
    (void)rc;
    *(uint8_t *)data ^= device->bytes[0] ^ uuid->bytes[15];
}

static void observe_byte(const struct uuid *device, int8_t rc, int8_t value, void *data)
{
    (void)rc;
    *(uint8_t *)data ^= device->bytes[0] ^ (uint8_t)value;
}

static void observe_certificate(const struct uuid *device, int8_t rc, struct certificate found,
                                void *data)
{
    *(uint8_t *)data ^= device->bytes[0];
    if (rc >= 0 && found.size > sizeof found.data)
        failures++;
}

static void observe_report(const struct uuid *device, int8_t rc, struct report found, void *data)
{
    *(uint8_t *)data ^= device->bytes[0];
    if (rc >= 0 && found.size > sizeof found.data)
        failures++;
}

static void call_nscq(void)
{
    static const struct {
        const char *path;
        any_callback function;
    } calls[] = {
        {"/drv/nvswitch/{device}/uuid", (any_callback)observe_uuid},
        {"/{nvswitch}/id/arch", (any_callback)observe_byte},
        {"/{nvswitch}/config/pcie_mode", (any_callback)observe_byte},
        {"/{nvswitch}/config/certificate", (any_callback)observe_certificate},
        {"/{nvswitch}/config/attestation_report", (any_callback)observe_report},
        {"/SWX-00000000-0000-0000-0000-000000000000/id/arch", (any_callback)observe_byte},
        {"/{nvswitch}/other", (any_callback)observe_byte},
        {"/", (any_callback)observe_byte},
        {"", (any_callback)observe_byte},
    };
    struct session_result created = nscq_session_create(1);
    uint8_t nonce[33] = {0}, data = 0;

    if (created.rc < 0)
        return;
    nscq_session_set_input(created.session, 0, nonce, 32);
    if (nscq_session_set_input(created.session, 0, nonce, 33) >= 0)
        failures++;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        nscq_session_path_observe(created.session, calls[i].path, calls[i].function, &data, 0);
    nscq_session_destroy(created.session);
}

int main(int count, char **words)
{
    long rounds = count > 1 ? strtol(words[1], NULL, 10) : 1;

    while (rounds-- > 0) {
        call_nvml();
        call_nscq();
    }
    return failures ? 1 : 0;
}
