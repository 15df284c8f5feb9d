/*
 * Client of the stub driver's server, see stub_server.py.
 *
 * The server's Unix socket is named "socket" and is in the folder of the library. Every call is one
 * connection: a request of three 32-bit numbers and data, a response of two 32-bit numbers and
 * data, in the byte order of the machine.
 */
#ifndef ATTESTKIT_STUB_CLIENT_H
#define ATTESTKIT_STUB_CLIENT_H

#include <stddef.h>
#include <stdint.h>

/* Calls; StubCall of stub_server.py has the same names and numbers. */
enum stub_call {
    STUB_INIT = 1,
    STUB_SHUTDOWN = 2,
    STUB_DRIVER_VERSION = 3,
    STUB_DEVICE_COUNT = 4,
    STUB_DEVICE_HANDLE = 5,
    STUB_DEVICE_NAME = 6,
    STUB_DEVICE_BOARD_ID = 7,
    STUB_DEVICE_ARCHITECTURE = 8,
    STUB_DEVICE_UUID = 9,
    STUB_DEVICE_VBIOS_VERSION = 10,
    STUB_DEVICE_PDI = 11,
    STUB_CC_CAPABILITIES = 12,
    STUB_CC_STATE = 13,
    STUB_CC_SETTINGS = 14,
    STUB_CC_GET_READY_STATE = 15,
    STUB_CC_SET_READY_STATE = 16,
    STUB_DEVICE_CERTIFICATE = 17,
    STUB_DEVICE_REPORT = 18,
    STUB_DEVICE_PCI_BUS_ID = 19,
    STUB_DEVICE_UTILIZATION = 20,
    STUB_DEVICE_MEMORY = 21,
    STUB_DEVICE_TEMPERATURE = 22,
    STUB_DEVICE_POWER_USAGE = 23,
    STUB_SWITCH_SESSION = 32,
    STUB_SWITCH_UUIDS = 33,
    STUB_SWITCH_ARCHITECTURE = 34,
    STUB_SWITCH_PCIE_MODE = 35,
    STUB_SWITCH_CERTIFICATE = 36,
    STUB_SWITCH_REPORT = 37,
};

#define STUB_MAX_INPUT 32u      /* bytes of data of a request */
#define STUB_MAX_OUTPUT 0x2000u /* bytes of data of a response */
#define STUB_CONNECT_FAILED (-1000)
#define STUB_BAD_RESPONSE (-1001)

struct stub_answer {
    int32_t code;  /* of the server, or STUB_CONNECT_FAILED or STUB_BAD_RESPONSE */
    uint32_t size; /* of `data`, at most STUB_MAX_OUTPUT; 0 unless `code` is 0 */
    uint8_t data[STUB_MAX_OUTPUT];
};

/* Send a request and receive the answer. `input_size` is at most STUB_MAX_INPUT. */
void stub_ask(enum stub_call call, uint32_t index, const void *input, uint32_t input_size,
              struct stub_answer *answer);

/* Copy the data of an answer into `output`; return 1, or 0 unless they have exactly this size. */
int stub_copy(const struct stub_answer *answer, void *output, size_t size);

#endif
