"""Boot log of the simulator: readable like a hardware log, and consistent with RTMR0 to RTMR2."""

import struct

from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.backends.simulator.boot_log import (
    AREA_SIZE,
    boot_log,
    boot_records,
    replay_records,
)
from attestkit.backends.simulator.images.os_image import simulated_image
from attestkit.event_log import EventLog
from attestkit.factory import open as open_attester
from attestkit.quote import TdQuoteBody
from tests.vectors import data, needs_shared

LOG = boot_log(simulated_image())
RECORDS = boot_records(simulated_image())


def test_boot_log_area_has_header_records_and_padding() -> None:
    """64 KiB: a Spec ID header with index 1, the records, and 0xFF up to the end."""
    assert len(LOG) == AREA_SIZE == 65536
    assert struct.unpack_from("<II", LOG) == (1, 3)
    assert LOG[32:48] == b"Spec ID Event03\0"
    parsed = EventLog.parse(LOG)
    assert parsed.warnings == ()
    used = len(LOG.rstrip(b"\xff"))
    assert set(LOG[used:]) == {0xFF}


def test_boot_log_replays_to_the_registers() -> None:
    """The parser's replay equals the writer's; RTMR3 is unused before the kernel."""
    assert EventLog.from_ccel(LOG).replay() == (*replay_records(RECORDS), bytes(48))
    assert len({*replay_records(RECORDS), bytes(48)}) == 4


@needs_shared
def test_boot_log_resembles_hardware_log() -> None:
    """Event data equals that of a real boot, except for machine-specific values."""
    real = EventLog.from_ccel(data("ccel/dstack/ccel.bin")).events
    ours = EventLog.from_ccel(LOG).events
    own = {0x80000003}  # addresses of the loaded image
    differing = [
        (simulated.type_name, simulated.payload)
        for simulated, actual in zip(
            [event for event in ours if event.register != 2],  # the real kernel has none
            real,
            strict=True,
        )
        if (simulated.register, simulated.event_type) != (actual.register, actual.event_type)
        or (simulated.payload != actual.payload and simulated.event_type not in own)
    ]
    assert differing == []
    same = {event.digest for event in ours} & {event.digest for event in real}
    assert len(same) == 12  # all but the memory list, the ACPI tables and the kernel
    loaded = [event for event in ours if event.event_type in own]
    actual = [event for event in real if event.event_type in own]
    assert loaded[0].payload[24:] == actual[0].payload[24:]


def test_os_image_is_verified_from_its_measurement() -> None:
    """The image hash leads through its documents to the registers of a quote."""
    with open_attester("simulator") as tee:
        evidence = tee.attest(report_data=b"image", pad=True)
        app = tee.app_info
        expected = simulated_image().os_image_hash
        assert verify_os_image(evidence.evidence) == app.os_image_hash == expected
        assert evidence.quote is not None
        assert evidence.quote.mrtd == simulated_image().mrtd
        body = evidence.quote.body
        assert isinstance(body, TdQuoteBody)
        assert body.mr_config_id == config_id_v1(app.compose_hash)
