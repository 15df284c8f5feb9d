"""A simulated Intel PKI: evidence of a TD, and verifiers that trust its root."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.backends.simulator.images.os_image import Image, simulated_image
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.collateral import Collateral
from attestkit.collateral.responses import Getter, Response
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.quote import Quote
from attestkit.verifier import Verifier
from tests.collateral.services import respond

NOW: Final = datetime(2026, 9, 21, 14, 13, 20, tzinfo=timezone.utc)
SEED: Final = bytes(range(32))
PKI: Final = SimulatedPki(SEED)
ENCLAVE: Final = QuotingEnclave(PKI)
IMAGE: Final = simulated_image()
NONCE: Final = b"nonce"
APP_ID: Final = bytes(range(100, 120))
COMPOSE_HASH: Final = bytes(range(200, 232))
BOOT: Final = (
    ("system-preparing", b""),
    ("app-id", APP_ID),
    ("compose-hash", COMPOSE_HASH),
    ("instance-id", bytes(20)),
    ("boot-mr-done", b""),
    ("key-provider", b'{"name":"none","id":""}'),
    ("system-ready", b""),
)


def collateral() -> Collateral:
    """Return collateral of the simulated Intel PKI at NOW."""
    return PKI.collateral(NOW.timestamp())


def attester(**options: Any) -> Attester:
    """Return an attester of a simulated TD with SEED."""
    return Attester(Simulator(seed=SEED, **options))


def verifier(**options: Any) -> Verifier:
    """Return a verifier at NOW that trusts the simulator's root."""
    defaults = {"trust_anchor": PKI.root_der, "collateral": collateral(), "clock": lambda: NOW}
    return Verifier(**{**defaults, **options})


def log_of(events: Sequence[tuple[str, bytes]], version: int = 1) -> EventLog:
    """Return the simulated firmware's log followed by these runtime events."""
    made = [runtime_event(name, payload, version) for name, payload in events]
    return EventLog.from_ccel(boot_log(IMAGE)).with_runtime(made)


def with_digests(image: Image, digests: Mapping[str, bytes]) -> Image:
    """Return the image with these digests, by event name, in place of those of its events."""
    events = [each._replace(digest=digests.get(each.name, each.digest)) for each in image.events]
    return image._replace(events=tuple(events))


def quote_of(log: EventLog, report_data: bytes = NONCE, **fields: bytes) -> Quote:
    """Return a correctly signed quote with the log's RTMR3; `fields` are of the TD report."""
    rtmr0, rtmr1, rtmr2 = replay_records(boot_records(IMAGE))
    defaults = {
        "mrtd": IMAGE.mrtd,
        "mr_config_id": config_id_v1(COMPOSE_HASH),
        "rtmr0": rtmr0,
        "rtmr1": rtmr1,
        "rtmr2": rtmr2,
        "rtmr3": log.replay()[3],
        "report_data": report_data.ljust(64, b"\0"),
    }
    return Quote.parse(ENCLAVE.quote(TdBody(**{**defaults, **fields}).td10()))


def evidence(
    events: Sequence[tuple[str, bytes]] = BOOT, *, version: int = 1, **fields: bytes
) -> Attestation:
    """Return correctly signed evidence of a TD with these runtime events."""
    log = log_of(events, version)
    return Attestation.for_tdx(quote_of(log, **fields), log, IMAGE.vm_config)


def fixed_clock() -> datetime:
    """Return NOW; unlike a lambda, this clock pickles."""
    return NOW


def no_network(url: str) -> Response:
    """Fail, as a getter that must not be called."""
    raise AssertionError(url)


@dataclass(frozen=True)
class RecordingGetter:
    """A picklable getter that records requested URLs in a file shared by all processes."""

    record: Path

    def __call__(self, url: str) -> Response:
        """Get a URL."""
        with self.record.open("a") as file:  # one write, and so atomic
            file.write(f"{url}\n")
        return pccs()(url)

    def urls(self) -> list[str]:
        """Return the requested URLs."""
        return self.record.read_text().splitlines()


def pccs() -> Getter:
    """Return a getter for the simulated PCCS, without network."""
    quote = Quote.parse(ENCLAVE.quote(TdBody().td10()))
    platform = ServedPlatform(quote.header.user_data[:16], quote.pck_chain[0])
    return partial(respond, SimulatedPccs(collateral, [platform]))
