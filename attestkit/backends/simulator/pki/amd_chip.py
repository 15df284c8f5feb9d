"""Simulated AMD PKI: ARK, ASK, and a chip that signs reports.

Reports have version 3 of the SEV-SNP Firmware ABI, from a Genoa processor. A verifier that trusts
the simulated ARK accepts them. Chip, ASK and ARK sign with ECDSA P-384, whereas AMD's authorities
sign with RSA-PSS (see `_crypto.amd_certificates`).
"""

import struct
from collections.abc import Callable
from typing import Final
from uuid import UUID

from attestkit._crypto.p384 import P384_ORDER, P384Key
from attestkit._crypto.x509.amd_certificates import (
    AmdAuthority,
    issue_amd_certificate,
    vcek_extensions,
)
from attestkit._crypto.x509.sgx_pki_writer import Window
from attestkit.backends.simulator.os_image import simulated_snp_image
from attestkit.backends.simulator.pki.intel_pki import derive, serial_number
from attestkit.backends.simulator.scenarios.config import Scenario, SnpConfig, value_or

_BODY: Final = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8sBBBxBBBx8s168x")
_SIGNATURE: Final = 512  # bytes: r and s of 72 each, little-endian, and zeros
_TABLE_ENTRY: Final = struct.Struct("<16sII")
_PRODUCT: Final = "Genoa"
_CPUID: Final = (0x19, 0x11, 1)  # family, model, stepping
_SPLS: Final = {"3.1": 0, "3.2": 1, "3.3": 6, "3.8": 7}  # offsets in a TCB version
_VCEK: Final = UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
_ASK: Final = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes
_ARK: Final = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes


class SimulatedChip:
    """A processor with its certificates and one guest. Immutable, and so thread-safe."""

    def __init__(
        self, derive: Callable[[str, int], bytes], config: SnpConfig | None = None
    ) -> None:
        """Derive the keys and issue the certificates.

        Args:
            derive: Returns secret bytes for a label and a number of bytes.
            config: Deviations of reports and certificates.

        Raises:
            UsageError: If a value of `config` is not valid in a certificate.
        """
        config = config or SnpConfig()
        self._derive, self._config = derive, config
        self._chip_id = derive("snp/chip-id", 64)
        self._report_id = derive("snp/report-id", 32)
        self._key = self._p384(config.report_key or "chip/0")
        ark = AmdAuthority(f"ARK-{_PRODUCT}", self._p384("ark"))
        ask = AmdAuthority(f"SEV-{_PRODUCT}", self._p384("ask"))
        self.ark_der: bytes = self._issue("ark", ark, ark, path_length=1)
        self.ask_der: bytes = self._issue("ask", ask, ark, path_length=0)
        self.vcek_der: bytes = self._issue_vcek(ask)
        # The certificate table, as the host passes it to the guest.
        self.certificates: bytes = self._table()

    def report(self, report_data: bytes, *, vmpl: int = 0, host_data: bytes = bytes(32)) -> bytes:
        """Return a signed report, 1184 bytes.

        Args:
            report_data: 64 bytes.
            vmpl: 0 to 3, of the requester.
            host_data: 32 bytes, set by the host at launch.
        """
        tcb = self._config.snp_tcb
        body = _BODY.pack(
            *(3, 0, self._config.policy, bytes(16), bytes(16), vmpl, 1, tcb, 0x05, 0),
            report_data,
            simulated_snp_image().measurement,
            host_data,
            *(bytes(48), bytes(48)),  # no ID block
            *(self._report_id, b"\xff" * 32),
            *(tcb, *_CPUID, self._chip_id, tcb),
            *(31, 55, 1, 31, 55, 1),  # firmware, current and committed: build, minor, major
            tcb,
        )
        r, s = self._key.sign(body)
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return body + signature.ljust(_SIGNATURE, b"\0")

    def _p384(self, label: str) -> P384Key:
        # 72 bytes: the bias is negligible, so rejection sampling is not needed.
        wide = int.from_bytes(self._derive(f"p384/snp/{label}", 72), "big")
        return P384Key(wide % (P384_ORDER - 1) + 1)

    def _issue(
        self, label: str, subject: AmdAuthority, issuer: AmdAuthority, path_length: int
    ) -> bytes:
        return issue_amd_certificate(
            subject,
            issuer,
            serial=self._serial(label),
            validity=Window(self._config.not_before, self._config.not_after),
            path_length=path_length,
        )

    def _issue_vcek(self, ask: AmdAuthority) -> bytes:
        config = self._config
        chip = value_or(config.vcek_chip, "0")
        other = config.vcek_chip is not None
        hardware_id = self._derive(f"snp/chip-id/{chip}", 64) if other else self._chip_id
        tcb = value_or(config.vcek_tcb, config.snp_tcb)
        spls = {suffix: tcb[at] for suffix, at in _SPLS.items()}
        return issue_amd_certificate(
            AmdAuthority("SEV-VCEK", self._p384(f"chip/{chip}")),
            ask,
            serial=self._serial(f"chip/{chip}"),
            validity=Window(config.not_before, value_or(config.vcek_not_after, config.not_after)),
            path_length=None,
            extensions=vcek_extensions(f"{_PRODUCT}-B1", spls, hardware_id),
        )

    def _serial(self, label: str) -> int:
        return serial_number(self._derive(f"serial/snp/{label}", 20))

    def _table(self) -> bytes:
        certificates = {_VCEK: self.vcek_der, _ASK: self.ask_der, _ARK: self.ark_der}
        at = (len(certificates) + 1) * _TABLE_ENTRY.size
        entries, contents = b"", b""
        for guid, content in certificates.items():
            entries += _TABLE_ENTRY.pack(guid, at + len(contents), len(content))
            contents += content
        return entries + bytes(_TABLE_ENTRY.size) + contents


def issue_chip(seed: bytes, scenario: Scenario) -> tuple[SimulatedChip, bytes]:
    """Return the chip and the trust anchor."""

    def chip(label: str | None) -> SimulatedChip:
        of = seed if label is None else derive(seed, f"seed/{label}", 32)
        # Not `partial`, whose repr would contain the seed.
        return SimulatedChip(lambda name, length: derive(of, name, length), scenario.snp)

    made, anchor = chip(scenario.platform_pki), scenario.trust_anchor
    if anchor is None and scenario.platform_pki is None:
        return made, made.ark_der
    return made, anchor if isinstance(anchor, bytes) else chip(anchor).ark_der
