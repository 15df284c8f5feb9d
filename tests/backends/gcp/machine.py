"""A Confidential VM of Google for tests: simulated hardware, and swtpm with Google's NV indices."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer
from attestkit._crypto.x509.simulated.cloud_certificates import encode_name, issue_cloud_authority
from attestkit.backends.gcp import GcpBackend
from attestkit.backends.gcp.event_logs import event_digest
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.cloud_pki import (
    VALIDITY,
    CloudRoot,
    issue_google_certificate,
    p256_key,
)
from attestkit.backends.tpm.client import TpmClient
from attestkit.event_log.event_types import NO_ACTION
from attestkit.event_log.tcg import TpmEventLog
from attestkit.tpm.handles import ENDORSEMENT
from tests.vectors import data

ECC: Final = bytes.fromhex("0023000b00050072000000100018000b000300100000" + "0000")
RSA: Final = bytes.fromhex("0001000b00050472000000100014000b080000000000" + "0000")
LOG: Final = "vtpm/gcp/go-tpm-tools/eventlogs/ubuntu-2404-amd-sevsnp.bin"
INDICES: Final = {"ecc": (0x01C10003, 0x01C10002), "rsa": (0x01C10001, 0x01C10000)}


def secret(label: str, size: int) -> bytes:
    """Return bytes that depend on a label only."""
    return (label.encode() * size)[:size]


class GoogleCa:
    """An intermediate CA under the root of a machine, as Google has them."""

    def __init__(self, root: CloudRoot) -> None:
        name = encode_name(CN="EK/AK CA Intermediate", O="Google LLC")
        authority = Issuer(name, p256_key(secret, "intermediate"))
        self.intermediate_der = issue_cloud_authority(
            authority,
            root.authority,
            serial=7,
            validity=VALIDITY,
            path_length=0,
            usages=(bytes.fromhex("6781050801"),),  # 2.23.133.8.1
        )
        self._issuer = CloudRoot(authority, self.intermediate_der)

    def issue_ak_certificate(self, spki: bytes) -> bytes:
        """Return the certificate of a key."""
        return issue_google_certificate(self._issuer, spki, secret)


class Machine(NamedTuple):
    """A machine, and what a verifier needs for its evidence."""

    client: TpmClient
    hardware: Simulator
    paths: KernelPaths
    ca: GoogleCa

    def open(self) -> GcpBackend:
        """Return the backend."""
        return GcpBackend(paths=self.paths, hardware=self.hardware, client=self.client)

    def extend_by_events(self, count: int | None = None) -> None:
        """Extend PCR 14 by the events of the boot, which the simulator has measured in RTMR 3."""
        for event in self.hardware.open_journal().events()[:count]:
            self.client.pcr_extend(14, {"sha256": event_digest(event)})


def certify(client: TpmClient, kind: str, issue: Callable[[bytes], bytes]) -> bytes:
    """Store template and certificate of a key in the NV indices; return the certificate."""
    template = ECC if kind == "ecc" else RSA
    with client.primary_key(ENDORSEMENT, template) as key:
        certificate = issue(key.public.spki)
    for index, content in zip(
        INDICES[kind], (template, certificate + bytes(300)), strict=True
    ):  # an index is larger than its certificate
        client.nv_define(index, len(content))
        client.nv_write(index, content)
    return certificate


def make_machine(
    client: TpmClient, folder: Path, hardware: Simulator, *, kind: str = "ecc"
) -> Machine:
    """Return a machine that has booted by the log of Google's sample, with one key."""
    paths = KernelPaths.below(folder)
    paths.tpm_boot_log.parent.mkdir(parents=True)
    log = data(LOG)
    paths.tpm_boot_log.write_bytes(log)
    for event in TpmEventLog.parse(log).events:
        if event.event_type != NO_ACTION:
            client.pcr_extend(event.pcr, {"sha256": event.digest("sha256")})
    ca = GoogleCa(root_of(hardware))
    certify(client, kind, ca.issue_ak_certificate)
    return Machine(client, hardware, paths, ca)


def root_of(hardware: Simulator) -> CloudRoot:
    """Return the simulator's root with its key, which issues the certificates of its TPM."""
    pki = hardware._pki
    name = read_path_certificate(pki.root_der).subject
    return CloudRoot(Issuer(name, pki._root.key), pki.root_der)
