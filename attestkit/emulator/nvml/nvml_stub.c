/*
 * Stub of NVIDIA's libnvidia-ml.so.1: the calls for evidence and telemetry of GPUs.
 *
 * Names, structures and codes are those of NVML, as in NVIDIA's nvidia-ml-py (PyPI). All answers
 * come from the server; this file checks arguments and sizes only.
 */
#include "stub_client.h"

#include <stdatomic.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_DEVICES 64u
#define CERTIFICATE_SIZE 0x1000u
#define ATTESTATION_CERTIFICATE_SIZE 0x1400u
#define NONCE_SIZE 0x20u
#define REPORT_SIZE 0x2000u
#define CEC_REPORT_SIZE 0x1000u
#define SETTINGS_VERSION 0x1000014u
#define PDI_VERSION 0x1000010u
#define TEMPERATURE_GPU 0 /* the only sensor */

typedef int nvmlReturn_t;
typedef char *nvmlDevice_t; /* opaque to callers: the address of an element of `handles` */

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
};

struct system_caps {
    unsigned cpu, gpus;
};

struct system_state {
    unsigned environment, feature, dev_tools;
};

struct system_settings {
    unsigned version, environment, feature, dev_tools, multi_gpu;
};

struct gpu_certificate {
    unsigned size, attestation_size;
    uint8_t chain[CERTIFICATE_SIZE];
    uint8_t attestation_chain[ATTESTATION_CERTIFICATE_SIZE];
};

struct gpu_report {
    unsigned cec_present, size, cec_size;
    uint8_t nonce[NONCE_SIZE];
    uint8_t report[REPORT_SIZE];
    uint8_t cec_report[CEC_REPORT_SIZE];
};

struct pdi {
    unsigned version;
    unsigned long long value;
};

struct pci_info {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

struct utilization {
    unsigned gpu, memory; /* percent */
};

struct memory {
    unsigned long long total, free, used; /* bytes */
};

_Static_assert(sizeof(struct pci_info) == 68, "pci info");
_Static_assert(sizeof(struct system_settings) == (SETTINGS_VERSION & 0xFFFFFFu), "settings");
_Static_assert(sizeof(struct pdi) == (PDI_VERSION & 0xFFFFFFu), "pdi");
_Static_assert(sizeof(struct gpu_certificate) == 8 + 0x1000 + 0x1400, "certificate");
_Static_assert(sizeof(struct gpu_report) == 12332, "report");
_Static_assert(REPORT_SIZE <= STUB_MAX_OUTPUT && NONCE_SIZE <= STUB_MAX_INPUT, "buffers");

static char handles[MAX_DEVICES];
static atomic_uint users; /* calls of nvmlInit without their nvmlShutdown */

static nvmlReturn_t result(const struct stub_answer *answer)
{
    if (answer->code == STUB_CONNECT_FAILED)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    return answer->code < 0 ? NVML_ERROR_UNKNOWN : answer->code;
}

/* Ask the server, if the library is initialised. */
static nvmlReturn_t ask(enum stub_call call, uint32_t index, struct stub_answer *answer)
{
    if (!atomic_load(&users))
        return NVML_ERROR_UNINITIALIZED;
    stub_ask(call, index, NULL, 0, answer);
    return result(answer);
}

/* Ask for a value of fixed size. */
static nvmlReturn_t ask_value(enum stub_call call, uint32_t index, void *value, size_t size)
{
    struct stub_answer answer;
    nvmlReturn_t code = value ? ask(call, index, &answer) : NVML_ERROR_INVALID_ARGUMENT;

    if (code == NVML_SUCCESS && !stub_copy(&answer, value, size))
        return NVML_ERROR_UNKNOWN;
    return code;
}

/* Ask for a text, and write it with a NUL into a buffer of `length` bytes. */
static nvmlReturn_t ask_text(enum stub_call call, uint32_t index, char *text, unsigned length)
{
    struct stub_answer answer;
    nvmlReturn_t code = text ? ask(call, index, &answer) : NVML_ERROR_INVALID_ARGUMENT;

    if (code != NVML_SUCCESS)
        return code;
    if (memchr(answer.data, 0, answer.size))
        return NVML_ERROR_UNKNOWN;
    if (answer.size >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(text, answer.data, answer.size);
    text[answer.size] = 0;
    return NVML_SUCCESS;
}

/* Return the index of a handle; MAX_DEVICES, which the server refuses, for any other pointer. */
static uint32_t index_of(nvmlDevice_t device)
{
    uintptr_t at = (uintptr_t)device - (uintptr_t)handles;

    return at < MAX_DEVICES ? (uint32_t)at : MAX_DEVICES;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    struct stub_answer answer;

    stub_ask(STUB_INIT, flags, NULL, 0, &answer);
    if (answer.code == 0)
        atomic_fetch_add(&users, 1);
    return result(&answer);
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    struct stub_answer answer;
    nvmlReturn_t code = ask(STUB_SHUTDOWN, 0, &answer);

    if (code == NVML_SUCCESS)
        atomic_fetch_sub(&users, 1);
    return code;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t code)
{
    static const char *const texts[] = {
        "The operation was successful",
        "Uninitialized",
        "Invalid Argument",
        "Not Supported",
        "Insufficient Permissions",
        "Already Initialized",
        "Not Found",
        "Insufficient Size",
        "Insufficient External Power",
        "Driver Not Loaded",
        "Timeout",
        "Interrupt Request Issue",
        "NVML Shared Library Not Found",
        "Function Not Found",
        "Corrupted infoROM",
        "GPU is lost",
        "GPU requires restart",
        "The operating system has blocked the request.",
        "RM has detected an NVML/RM version mismatch.",
    };

    if (code == NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        return "Argument version mismatch";
    if (code < 0 || (size_t)code >= sizeof texts / sizeof *texts)
        return "Unknown Error";
    return texts[code];
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    return ask_text(STUB_DRIVER_VERSION, 0, version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    return ask_text(STUB_DRIVER_VERSION, 0, version, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    nvmlReturn_t code = ask_value(STUB_DEVICE_COUNT, 0, count, sizeof *count);

    if (code == NVML_SUCCESS && *count > MAX_DEVICES) {
        *count = 0;
        return NVML_ERROR_UNKNOWN;
    }
    return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    struct stub_answer answer;
    nvmlReturn_t code =
        device ? ask(STUB_DEVICE_HANDLE, index, &answer) : NVML_ERROR_INVALID_ARGUMENT;

    if (code == NVML_SUCCESS && index >= MAX_DEVICES)
        return NVML_ERROR_UNKNOWN;
    if (code == NVML_SUCCESS)
        *device = &handles[index];
    return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length)
{
    return ask_text(STUB_DEVICE_NAME, index_of(device), name, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned *id)
{
    return ask_value(STUB_DEVICE_BOARD_ID, index_of(device), id, sizeof *id);
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned *architecture)
{
    return ask_value(STUB_DEVICE_ARCHITECTURE, index_of(device), architecture,
                     sizeof *architecture);
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length)
{
    return ask_text(STUB_DEVICE_UUID, index_of(device), uuid, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *version, unsigned length)
{
    return ask_text(STUB_DEVICE_VBIOS_VERSION, index_of(device), version, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetPdi(nvmlDevice_t device, struct pdi *pdi)
{
    if (pdi && pdi->version != PDI_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return ask_value(STUB_DEVICE_PDI, index_of(device), pdi ? &pdi->value : NULL,
                     sizeof pdi->value);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci_info *pci)
{
    if (!pci)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(pci, 0, sizeof *pci);
    return ask_text(STUB_DEVICE_PCI_BUS_ID, index_of(device), pci->bus_id, sizeof pci->bus_id);
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *rates)
{
    return ask_value(STUB_DEVICE_UTILIZATION, index_of(device), rates, sizeof *rates);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct memory *memory)
{
    return ask_value(STUB_DEVICE_MEMORY, index_of(device), memory, sizeof *memory);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *celsius)
{
    if (sensor != TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    return ask_value(STUB_DEVICE_TEMPERATURE, index_of(device), celsius, sizeof *celsius);
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts)
{
    return ask_value(STUB_DEVICE_POWER_USAGE, index_of(device), milliwatts, sizeof *milliwatts);
}

EXPORT nvmlReturn_t nvmlSystemGetConfComputeCapabilities(struct system_caps *caps)
{
    return ask_value(STUB_CC_CAPABILITIES, 0, caps, sizeof *caps);
}

EXPORT nvmlReturn_t nvmlSystemGetConfComputeState(struct system_state *state)
{
    return ask_value(STUB_CC_STATE, 0, state, sizeof *state);
}

EXPORT nvmlReturn_t nvmlSystemGetConfComputeSettings(struct system_settings *settings)
{
    struct system_settings found;
    nvmlReturn_t code;

    if (!settings)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (settings->version != SETTINGS_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    code = ask_value(STUB_CC_SETTINGS, 0, &found.environment,
                     sizeof found - offsetof(struct system_settings, environment));
    if (code == NVML_SUCCESS) {
        found.version = SETTINGS_VERSION;
        *settings = found;
    }
    return code;
}

EXPORT nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned *ready)
{
    return ask_value(STUB_CC_GET_READY_STATE, 0, ready, sizeof *ready);
}

EXPORT nvmlReturn_t nvmlSystemSetConfComputeGpusReadyState(unsigned ready)
{
    struct stub_answer answer;

    return ask(STUB_CC_SET_READY_STATE, ready, &answer);
}

EXPORT nvmlReturn_t nvmlDeviceGetConfComputeGpuCertificate(nvmlDevice_t device,
                                                           struct gpu_certificate *certificate)
{
    struct stub_answer answer;
    nvmlReturn_t code = certificate ? ask(STUB_DEVICE_CERTIFICATE, index_of(device), &answer)
                                    : NVML_ERROR_INVALID_ARGUMENT;

    if (code != NVML_SUCCESS)
        return code;
    if (answer.size > ATTESTATION_CERTIFICATE_SIZE)
        return NVML_ERROR_UNKNOWN;
    memset(certificate, 0, sizeof *certificate);
    certificate->attestation_size = answer.size;
    memcpy(certificate->attestation_chain, answer.data, answer.size);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetConfComputeGpuAttestationReport(nvmlDevice_t device,
                                                                 struct gpu_report *report)
{
    struct stub_answer answer;
    nvmlReturn_t code;

    if (!report)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!atomic_load(&users))
        return NVML_ERROR_UNINITIALIZED;
    stub_ask(STUB_DEVICE_REPORT, index_of(device), report->nonce, NONCE_SIZE, &answer);
    code = result(&answer);
    if (code == NVML_SUCCESS) {
        report->cec_present = report->cec_size = 0;
        report->size = answer.size;
        memcpy(report->report, answer.data, answer.size);
    }
    return code;
}
