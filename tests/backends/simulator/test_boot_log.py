"""The simulator's firmware log is one that readers of real logs take; it explains RTMR0 to 2."""

import hashlib
import json
import struct
from base64 import b64decode

import cbor2

from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.attestation.launch.os_image import verified_hash
from attestkit.backends.simulator.boot_log import (
    AREA_SIZE,
    boot_log,
    boot_records,
    replay_records,
)
from attestkit.backends.simulator.os_image import simulated_image
from attestkit.event_log import EventLog
from attestkit.factory import open as open_attester
from attestkit.quote import TdQuoteBody
from tests.vectors import data, needs_shared

LOG = boot_log(simulated_image())
RECORDS = boot_records(simulated_image())
TYPES = """
0 EV_EFI_HANDOFF_TABLES2
0 EV_EFI_PLATFORM_FIRMWARE_BLOB2
0 EV_EFI_VARIABLE_DRIVER_CONFIG
0 EV_EFI_VARIABLE_DRIVER_CONFIG
0 EV_EFI_VARIABLE_DRIVER_CONFIG
0 EV_EFI_VARIABLE_DRIVER_CONFIG
0 EV_EFI_VARIABLE_DRIVER_CONFIG
0 EV_SEPARATOR
0 EV_PLATFORM_CONFIG_FLAGS acpi-loader
0 EV_PLATFORM_CONFIG_FLAGS acpi-rsdp
0 EV_PLATFORM_CONFIG_FLAGS acpi-tables
1 EV_EFI_BOOT_SERVICES_APPLICATION
0 EV_EFI_VARIABLE_BOOT
0 EV_EFI_VARIABLE_BOOT
1 EV_EFI_ACTION
1 EV_SEPARATOR
2 EV_EVENT_TAG
2 EV_EVENT_TAG
1 EV_EFI_ACTION
1 EV_EFI_ACTION
""".strip().splitlines()


def test_the_area_is_as_firmware_leaves_it() -> None:
    """64 KiB: a Spec ID header with index 1, the records, and 0xFF to the end."""
    assert len(LOG) == AREA_SIZE == 65536
    assert struct.unpack_from("<II", LOG) == (1, 3)
    assert LOG[32:48] == b"Spec ID Event03\0"
    parsed = EventLog.parse(LOG)
    assert parsed.warnings == ()
    used = len(LOG.rstrip(b"\xff"))
    assert set(LOG[used:]) == {0xFF}


def test_the_events_are_those_of_a_boot() -> None:
    """Register, type and name of each, in the order of firmware, boot manager and kernel."""
    events = EventLog.from_ccel(LOG).events
    found = [f"{event.register} {event.type_name} {event.name}".strip() for event in events]
    assert found == TYPES


def test_it_replays_to_the_registers() -> None:
    """The reader's replay and the writer's are the same; RTMR3 is nobody's before the kernel."""
    assert EventLog.from_ccel(LOG).replay() == (*replay_records(RECORDS), bytes(48))
    assert len({*replay_records(RECORDS), bytes(48)}) == 4


def test_digests_are_those_of_what_is_shown() -> None:
    """Where a type's rule says what its digest covers, it covers that."""
    for record in RECORDS:
        whole = hashlib.sha384(record.data).digest()
        if record.event_type in (0x4, 0x80000001, 0x80000007):
            assert record.digest == whole
        elif record.event_type == 0x80000002:  # the variable's value alone
            name_size, value_size = struct.unpack_from("<QQ", record.data, 16)
            assert 32 + 2 * name_size + value_size == len(record.data)
            value = record.data[32 + 2 * name_size :]
            assert record.digest == hashlib.sha384(value).digest()
        else:
            assert record.digest != whole


@needs_shared
def test_it_looks_like_a_log_from_hardware() -> None:
    """Event data are those of a real boot wherever they do not name something of its own."""
    real = EventLog.from_ccel(data("ccel/dstack/ccel.bin")).events
    ours = EventLog.from_ccel(LOG).events
    own = {0x80000003}  # addresses of the loaded image
    differing = [
        (mine.type_name, mine.payload)
        for mine, theirs in zip(
            [event for event in ours if event.register != 2],  # that kernel measured nothing
            real,
            strict=True,
        )
        if (mine.register, mine.event_type) != (theirs.register, theirs.event_type)
        or (mine.payload != theirs.payload and mine.event_type not in own)
    ]
    assert differing == []
    same = {event.digest for event in ours} & {event.digest for event in real}
    assert len(same) == 12  # all but the memory list, the ACPI tables and the kernel
    loaded = [event for event in ours if event.event_type in own]
    theirs = [event for event in real if event.event_type in own]
    assert loaded[0].payload[24:] == theirs[0].payload[24:]


def test_the_image_can_be_verified_from_its_measurement() -> None:
    """The image's hash, through its documents, leads to the registers in a quote."""
    with open_attester("simulator") as tee:
        evidence = tee.attest(b"image")
        app = tee.info()
        expected = simulated_image().os_image_hash
        assert verified_hash(evidence.evidence) == app.os_image_hash == expected
        assert evidence.quote is not None
        assert evidence.quote.mrtd == simulated_image().mrtd
        body = evidence.quote.body
        assert isinstance(body, TdQuoteBody)
        assert body.mr_config_id == config_id_v1(app.compose_hash)


def test_the_measurement_document_is_cbor() -> None:
    """It is written without a library, as the library would."""
    fields = json.loads(simulated_image().vm_config)
    document = b64decode(fields["tdx_measurement"]["measurement"])
    found = cbor2.loads(document)
    assert cbor2.dumps(found) == document
    assert found["version"] == 3
    assert found["tdvf"]["mrtd"]["single_pass"] == simulated_image().mrtd
