"""Simulated AMD PKI: ARK, ASK or ASVK, and a chip that signs reports.

Reports have version 2 to 5 of the SEV-SNP Firmware ABI, from a Milan, Genoa or Turin processor,
signed by its VCEK or a provider's VLEK. Certificates have AMD's own form, with RSA-4096 keys that
are derived from the seed when a certificate is first needed. A verifier that trusts the simulated
ARK accepts them; names, serial numbers and CRL addresses are AMD's, because verifiers require them.
"""

import struct
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.simulated.amd_certificates import (
    AmdAuthority,
    EndorsementKey,
    issue_amd_authority,
    issue_amd_crl,
    issue_endorsement_key,
)
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit.backends.simulator.images.os_image import simulated_snp_image
from attestkit.backends.simulator.pki.cloud_pki import p384_key
from attestkit.backends.simulator.pki.intel_pki import collateral_window, derive
from attestkit.backends.simulator.scenarios.config import Scenario, SnpConfig, value_or

_BODY: Final = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8sBBBxBBBx8s168x")
_SIGNATURE: Final = 512  # bytes: r and s of 72 each, little-endian, and zeros
_TABLE_ENTRY: Final = struct.Struct("<16sII")
_VCEK: Final = UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
_VLEK: Final = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1").bytes
_ASK: Final = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes
_ARK: Final = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes
_SIGNED_BY_VLEK: Final = 1 << 2  # of the key information
_PROVIDER: Final = "attestkit-simulator"  # CSP_ID of the VLEK


class _Product(NamedTuple):
    """Properties of a product line of processors: Milan, Genoa or Turin."""

    serial: int  # of its ARK
    cpuid: tuple[int, int, int]  # family, model, stepping
    processor: str  # product name in a VCEK
    structure_version: int  # of VCEK and VLEK
    spls: tuple[str, ...]  # suffixes of AMD's OIDs, by offset in a TCB version
    chip_id_size: int  # bytes
    tcb: bytes  # 8 bytes, by default


# SPLs in the order of AMD's extensions, each a byte of the TCB version. Turin has no SPL 4.
_FAMILY_19: Final = ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8")
_FAMILY_1A: Final = ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8")
_PRODUCTS: Final = {
    "Milan": _Product(
        *(0x10000, (0x19, 0x01, 1), "Milan-B1", 0, _FAMILY_19, 64),
        bytes([4, 0, 0, 0, 0, 0, 24, 219]),
    ),
    "Genoa": _Product(
        *(0x20000, (0x19, 0x11, 1), "Genoa-B1", 0, _FAMILY_19, 64),
        bytes([9, 0, 0, 0, 0, 0, 21, 72]),
    ),
    "Turin": _Product(
        *(0x30000, (0x1A, 0x02, 1), "Turin", 1, _FAMILY_1A, 8), bytes([1, 1, 1, 4, 0, 0, 0, 72])
    ),
}


class SimulatedChip:
    """A processor with its certificates and one guest. Immutable, and so thread-safe."""

    def __init__(
        self, derive: Callable[[str, int], bytes], config: SnpConfig | None = None
    ) -> None:
        """Derive the key of the reports; certificates are issued when they are first read.

        Args:
            derive: Returns secret bytes for a label and a number of bytes.
            config: Content of reports and certificates; None: that of an up-to-date Genoa chip.
        """
        config = config or SnpConfig()
        self._derive, self._config = derive, config
        self._product = _PRODUCTS[config.product]
        self._tcb = value_or(config.snp_tcb, self._product.tcb)
        self._chip_id = self._hardware_id("snp/chip-id")
        self._report_id = derive("snp/report-id", 32)
        self._is_vlek = config.signing_key == "VLEK"
        self._key = self._p384(config.report_key or ("provider" if self._is_vlek else "chip/0"))

    def report(
        self,
        report_data: bytes,
        *,
        vmpl: int = 0,
        host_data: bytes = bytes(32),
        measurement: bytes | None = None,
    ) -> bytes:
        """Return a signed report, 1184 bytes.

        Args:
            report_data: 64 bytes.
            vmpl: 0 to 3, of the requester.
            host_data: 32 bytes, set by the host at launch.
            measurement: 48 bytes. None: that of the simulated OS image.
        """
        tcb, version = self._tcb, self._config.report_version
        body = _BODY.pack(
            *(version, 0, self._config.policy, bytes(16), bytes(16), vmpl, 1, tcb, 0x05),
            _SIGNED_BY_VLEK if self._is_vlek else 0,
            report_data,
            value_or(measurement, simulated_snp_image().measurement),
            host_data,
            *(bytes(48), bytes(48)),  # no ID block
            *(self._report_id, b"\xff" * 32),
            tcb,
            *(self._product.cpuid if version >= 3 else (0, 0, 0)),
            *(self._chip_id.ljust(64, b"\0"), tcb),
            *(31, 55, 1, 31, 55, 1),  # firmware, current and committed: build, minor, major
            tcb,
        )
        r, s = self._key.sign(body)
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return body + signature.ljust(_SIGNATURE, b"\0")

    @cached_property
    def ark_der(self) -> bytes:
        """The certificate of the root, ARK, in DER."""
        return self._issue_authority(self._ark, serial=self._product.serial, kind="vcek")

    @cached_property
    def ask_der(self) -> bytes:
        """The certificate (DER) of the leaf's issuer: ASK, or ASVK for a VLEK."""
        serial = self._product.serial + (0x101 if self._is_vlek else 1)
        kind = "vlek" if self._is_vlek else "vcek"
        return self._issue_authority(self._ask, serial=serial, kind=kind)

    @cached_property
    def leaf_der(self) -> bytes:
        """The certificate (DER) of the key that signs reports: VCEK or VLEK."""
        config, product = self._config, self._product
        end = value_or(config.vcek_not_after, config.not_after)
        tcb = value_or(config.vcek_tcb, self._tcb)
        spls = dict(zip(product.spls, tcb, strict=True))
        (spki, chip_id), name, provider = self._certified_chip(), product.processor, ""
        if self._is_vlek:
            spki, chip_id = self._p384("provider").spki, b""
            name, provider = config.product, _PROVIDER
        key = EndorsementKey(spki, product.structure_version, name, spls, chip_id, provider)
        return issue_endorsement_key(key, self._ask, Window(config.not_before, end))

    @cached_property
    def certificates(self) -> bytes:
        """Leaf, its issuer and the ARK, in the certificate table that a host passes to a guest."""
        leaf = _VLEK if self._is_vlek else _VCEK
        certificates = {leaf: self.leaf_der, _ASK: self.ask_der, _ARK: self.ark_der}
        at = (len(certificates) + 1) * _TABLE_ENTRY.size
        entries, contents = b"", b""
        for guid, content in certificates.items():
            entries += _TABLE_ENTRY.pack(guid, at + len(contents), len(content))
            contents += content
        return entries + bytes(_TABLE_ENTRY.size) + contents

    def crl(self, now: float) -> bytes:
        """Return the ARK's CRL (DER) at a Unix time; it revokes nothing.

        It is constant during a UTC day.

        Raises:
            UsageError: If `now` is not in 1970-01-02 to 9999-12-02.
        """
        start, end = collateral_window(now)
        window = Window(*(datetime.fromtimestamp(at, timezone.utc) for at in (start, end)))
        return issue_amd_crl(self._ark, window=window, number=start // 86400)

    @property
    def tcb(self) -> bytes:
        """The reported TCB version, 8 bytes as in the report."""
        return self._tcb

    @property
    def root_key(self) -> RsaKey:
        """The private key of the ARK, for certificates of the cloud that has this chip."""
        return self._ark.key

    @property
    def _ark(self) -> AmdAuthority:
        return self._authority("ARK-")

    @property
    def _ask(self) -> AmdAuthority:
        return self._authority("SEV-VLEK-" if self._is_vlek else "SEV-")

    def _authority(self, prefix: str) -> AmdAuthority:
        name = prefix + self._config.product
        return _make_authority(name, self._derive(f"rsa/snp/{name}", 32))

    def _issue_authority(self, subject: AmdAuthority, *, serial: int, kind: str) -> bytes:
        config = self._config
        url = f"https://kdsintf.amd.com/{kind}/v1/{config.product}/crl"
        validity = Window(config.not_before, config.not_after)
        return _issue_authority(subject, self._ark, serial=serial, validity=validity, crl_url=url)

    def _p384(self, label: str) -> P384Key:
        return p384_key(self._derive, f"snp/{label}")

    def _hardware_id(self, label: str) -> bytes:
        return self._derive(label, 64)[: self._product.chip_id_size]

    def _certified_chip(self) -> tuple[bytes, bytes]:
        """Return SubjectPublicKeyInfo and hardware ID of the chip that the VCEK is for."""
        chip = self._config.vcek_chip
        if chip is None:
            return self._p384("chip/0").spki, self._chip_id
        return self._p384(f"chip/{chip}").spki, self._hardware_id(f"snp/chip-id/{chip}")


# Keys and signatures of authorities take most of the time of a chain, and chips share them.


@lru_cache(maxsize=32)
def _make_authority(name: str, seed: bytes) -> AmdAuthority:
    return AmdAuthority(name, RsaKey(seed))


_issue_authority: Final = lru_cache(maxsize=32)(issue_amd_authority)


def issue_chip(seed: bytes, scenario: Scenario) -> SimulatedChip:
    """Return the chip of a platform, a function of the seed, 32 bytes, and the scenario."""
    return _make_chip(seed, scenario.platform_pki, scenario.snp)


def find_amd_root(seed: bytes, scenario: Scenario) -> bytes:
    """Return the trust anchor (DER) of reports of the platform that `seed` and `scenario` make."""
    anchor = scenario.trust_anchor
    if isinstance(anchor, bytes):
        return anchor
    return _make_chip(seed, anchor, scenario.snp).ark_der


def _make_chip(seed: bytes, label: str | None, config: SnpConfig) -> SimulatedChip:
    of = seed if label is None else derive(seed, f"seed/{label}", 32)
    # Not `partial`, whose repr would contain the seed.
    return SimulatedChip(lambda name, length: derive(of, name, length), config)
