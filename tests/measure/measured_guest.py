"""A guest that booted what was measured: simulated evidence, and files for the guide.

`python -m tests.measure.measured_guest FOLDER NONCE` writes two images, the evidence of a guest of
each, and what verifies them.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from attestkit.attestation import Attestation
from attestkit.event_log import Event, EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.measure import ExpectedMeasurements, dstack_image
from attestkit.report_data import ReportData
from tests.measure.firmware_images import tdvf_image
from tests.measure.image_samples import METADATA, sealed, write_folder
from tests.measure.kernel.samples import linux_kernel
from tests.verifier.platforms import intel

VM_CONFIG: dict[str, Any] = {"cpu_count": 2, "memory_size": 2 << 30, "qemu_version": "10.0.13"}
NONCE = bytes(range(32))
LISTED = ("ovmf.fd", "bzImage", "initramfs.cpio.gz", "metadata.json")


def image_files(initrd: bytes = b"an initrd", **metadata: Any) -> dict[str, bytes]:
    """Return the files of a dstack image with a small firmware and kernel."""
    files = {
        "ovmf.fd": tdvf_image(),
        "bzImage": linux_kernel(),
        "initramfs.cpio.gz": initrd,
        "metadata.json": json.dumps(METADATA | metadata).encode(),
    }
    return sealed(files, LISTED)


def log_of(expected: ExpectedMeasurements) -> EventLog:
    """Return the log of a guest with the expected events, and runtime events."""
    events = []
    for event in expected.events:
        assert event.digest is not None, event.name
        events.append(Event(event.register, event.event_type, event.digest, "", b""))
    return EventLog(events).with_runtime([runtime_event(*one, 1) for one in intel.BOOT])


def evidence_of(expected: ExpectedMeasurements, nonce: bytes = NONCE) -> Attestation:
    """Return correctly signed evidence of a simulated guest with the expected registers."""
    log = log_of(expected)
    values = {f"rtmr{number}": value for number, value in enumerate(log.replay())}
    assert expected.mrtd is not None
    quote = intel.quote_of(log, ReportData.for_nonce(nonce), mrtd=expected.mrtd, **values)
    return Attestation.for_tdx(quote, log)


def write_files(folder: Path, nonce: bytes) -> None:
    """Write the files of the guide."""
    for name, initrd in (("image", b"an initrd"), ("next-image", b"another initrd")):
        image = write_folder(folder / name, image_files(initrd))
        expected = dstack_image(image, VM_CONFIG)
        (folder / f"{name}.evidence").write_bytes(evidence_of(expected, nonce).to_bytes())
    (folder / "vm.json").write_text(json.dumps(VM_CONFIG) + "\n")
    (folder / "root.der").write_bytes(intel.PKI.root_der)
    intel.PKI.collateral(time.time()).save(folder / "collateral.json")


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
