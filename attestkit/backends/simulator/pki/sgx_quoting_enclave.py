"""Simulated quoting enclave of SGX: signed quotes of version 3, and the collateral for them.

Layouts: Intel's "SGX ECDSA Quote Library API", A.4 (quote-formats.md, sections 3.5 and 4.1).
"""

import struct
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import (
    ENCLAVE_REPORT,
    SIGNATURE_SIZE,
    certified_qe_report,
)
from attestkit.backends.simulator.scenarios import config as configs
from attestkit.errors import UsageError

_HEADER: Final = struct.Struct("<HHIHH16s20s")  # 48 bytes; QE and PCE SVN are of version 3 only
_VERSION: Final = 3
_QE_MRSIGNER: Final = sha256(b"attestkit simulated QE signer")
_QE_ISVPRODID: Final = 1  # of Intel's quoting enclave; that of TDX has 2

SGX_QUOTES: Final = configs.QuoteConfig(
    tee_type=0,
    qe_mrsigner=_QE_MRSIGNER,
    qe_mrenclave=sha256(b"attestkit simulated QE enclave"),
    qe_isvprodid=_QE_ISVPRODID,
)
"""Content of SGX quotes; `msgspec.structs.replace` makes deviations."""

SGX_COLLATERAL: Final = configs.CollateralConfig(
    tcb_info=configs.TcbInfoConfig(id="SGX", tdx=False),
    qe_identity=configs.QeIdentityConfig(id="QE", mrsigner=_QE_MRSIGNER, isvprodid=_QE_ISVPRODID),
)
"""Content of the collateral for SGX quotes, an argument of `SimulatedPki.collateral`."""


class SimulatedEnclave(NamedTuple):
    """The fields of an enclave's report; the defaults are those of an enclave without debug."""

    mr_enclave: bytes = sha256(b"attestkit simulated enclave")  # 32 bytes
    mr_signer: bytes = sha256(b"attestkit simulated enclave signer")  # 32 bytes
    report_data: bytes = bytes(64)
    # 16 bytes: INIT and MODE64 (bit 1 would be DEBUG), then XFRM.
    attributes: bytes = bytes.fromhex("0500000000000000e700000000000000")
    isv_prod_id: int = 0  # 16 bits
    isv_svn: int = 1  # 16 bits
    misc_select: int = 0  # 32 bits

    def report(self, cpusvn: bytes) -> bytes:
        """Return the report, 384 bytes.

        Args:
            cpusvn: CPUSVN of the platform, 16 bytes.

        Raises:
            UsageError: If a field has the wrong size, or is out of range.
        """
        for name, size in (("mr_enclave", 32), ("mr_signer", 32), ("attributes", 16)):
            check_bytes(name, getattr(self, name), size)
        check_bytes("report_data", self.report_data, 64)
        check_bytes("cpusvn", cpusvn, 16)
        try:
            return ENCLAVE_REPORT.pack(
                cpusvn,
                self.misc_select,
                self.attributes,
                self.mr_enclave,
                self.mr_signer,
                self.isv_prod_id,
                self.isv_svn,
                self.report_data,
            )
        except struct.error as error:
            text = "simulated enclave: isv_prod_id, isv_svn or misc_select: out of range"
            raise UsageError(text, reason="out_of_range") from error


class SgxQuotingEnclave:
    """The SGX quoting enclave of a platform. Immutable, and so thread-safe.

    Platform, PCK certificate and QE id are those of `QuotingEnclave`; enclave and attestation key
    are others, as on hardware.
    """

    def __init__(
        self, pki: SimulatedPki, platform_id: str = "0", *, config: configs.QuoteConfig = SGX_QUOTES
    ) -> None:
        """Create the QE report.

        Args:
            pki: The issuer of the platform's certificate.
            platform_id: ASCII without a slash.
            config: Content of the quotes. `altered`, `reserved` and the fields of version 5 do not
                apply.

        Raises:
            UsageError: If the platform id is invalid.
        """
        platform = pki.platform(platform_id)
        self.qe_id: bytes = platform.qe_id  # 16 bytes, identifies the platform at a PCCS
        default = pki.key(f"platform/{platform_id}/sgx-attestation")
        self._key = pki.resolve(config.attestation_key, default)
        self._cpusvn = pki.config.cpusvn
        self._header = _header(config, pki.config, platform.qe_id)
        auth = self._key.public_point + certified_qe_report(config, pki, platform, self._key)
        self._auth_size = struct.pack("<I", SIGNATURE_SIZE + len(auth))
        self._tail = auth + bytes(config.padding)
        self._cut = config.cut

    def quote(self, enclave: SimulatedEnclave) -> bytes:
        """Return a signed quote of version 3 over the report of an enclave.

        Raises:
            UsageError: As `SimulatedEnclave.report`.
        """
        signed = self._header + enclave.report(self._cpusvn)
        quote = b"".join((signed, self._auth_size, self._key.sign(signed), self._tail))
        return quote[: len(quote) - self._cut]


def _header(config: configs.QuoteConfig, pki: configs.PkiConfig, qe_id: bytes) -> bytes:
    return _HEADER.pack(
        configs.value_or(config.version, _VERSION),
        config.attestation_key_type,
        config.tee_type,
        configs.value_or(config.qe_isvsvn, pki.qe_isvsvn),
        pki.pcesvn,
        config.vendor_id,
        configs.value_or(config.user_data, qe_id + bytes(4)),
    )
