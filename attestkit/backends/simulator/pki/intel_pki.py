"""The stand-in for Intel: a root, its certificates, CRLs and collateral, all from one seed.

Every byte is a function of seed, configuration, platform and time. The names are Intel's, because
verifiers insist on them; what tells a simulated certificate apart is the root's key, the reserved
host name of the CRLs, and the FMSPC. Whoever knows the seed can forge evidence: no verifier
trusts this root unless it is told to.
"""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from attestkit._crypto.ecdsa import P256_ORDER, P256Key
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.pem import armour
from attestkit._crypto.x509.sgx_pki_writer import (
    Authority,
    SgxPlatform,
    Window,
    issue_certificate,
    issue_crl,
    sgx_extension,
)
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    TcbInfoConfig,
    TcbLevel,
    given,
)
from attestkit.collateral import Collateral
from attestkit.errors import UsageError

__all__ = ["SimulatedPki", "SimulatedPlatform", "collateral_window", "derive", "serial_number"]

_SALT: Final = b"attestkit/sim-pki/v1"
_DAY: Final = 86400  # seconds
_LAST_DAY: Final = 2_932_896  # 9999-12-31, the last that datetime knows
_EARLIEST: Final = -631_152_000  # 1950-01-01, the first second that X.509 knows

_ROOT: Final = "root-ca"
_PCK_CA: Final = "pck-platform-ca"
_TCB_SIGNING: Final = "tcb-signing"

# Category and type of the TCB components, as Intel labels them; the rest have none.
_SGX_LABELS: Final[tuple[dict[str, str], ...]] = (
    {"category": "BIOS", "type": "Early Microcode Update"},
    {"category": "OS/VMM", "type": "SGX Late Microcode Update"},
    {"category": "OS/VMM", "type": "TXT SINIT"},
    {"category": "BIOS"},
    {"category": "BIOS"},
    {"category": "BIOS"},
    {},
    {"category": "OS/VMM", "type": "SEAMLDR ACM"},
)
_TDX_LABELS: Final = (
    {"category": "OS/VMM", "type": "TDX Module"},
    {"category": "OS/VMM", "type": "TDX Module"},
    {"category": "OS/VMM", "type": "TDX Late Microcode Update"},
)
_ATTRIBUTES_MASK: Final = "FBFFFFFFFFFFFFFF0000000000000000"


class SimulatedPki:
    """Root, PCK CA and TCB signer of one seed, and the collateral that they sign.

    Any number of platforms share them. All attributes that end in `_der` are certificates.
    """

    def __init__(self, seed: bytes, *, config: PkiConfig | None = None) -> None:
        """Make the keys and certificates.

        Args:
            seed: 32 bytes; whoever has them can sign as this PKI.
            config: what the certificates say; the default is one up-to-date platform.

        Raises:
            UsageError: the seed is not 32 bytes.
        """
        if len(seed) != 32:
            raise UsageError(f"a seed is 32 bytes, not {len(seed)}")
        self._seed = seed
        self.config: PkiConfig = config or PkiConfig()
        self._root = Authority("Intel SGX Root CA", self.key(_ROOT))
        self._pck_ca = Authority("Intel SGX PCK Platform CA", self.key(_PCK_CA))
        self._tcb_signing = Authority("Intel SGX TCB Signing", self.key(_TCB_SIGNING))
        self.root_der: bytes = self._issue(_ROOT, self._root, path_length=1)
        self.pck_ca_der: bytes = self._issue(_PCK_CA, self._pck_ca, path_length=0)
        self.tcb_signing_der: bytes = self._issue(_TCB_SIGNING, self._tcb_signing, path_length=None)

    def derive(self, label: str, length: int) -> bytes:
        """Return `length` bytes that depend on the seed and `label` alone (HKDF-SHA256)."""
        return derive(self._seed, label, length)

    def other(self, label: str) -> "SimulatedPki":
        """Return a PKI configured alike, whose seed depends on this one's and `label`."""
        return SimulatedPki(self.derive(f"seed/{label}", 32), config=self.config)

    def key(self, label: str) -> P256Key:
        """Return the P-256 key of `label`."""
        # 48 bytes leave no bias to speak of, so nothing has to be drawn again.
        wide = int.from_bytes(self.derive(f"p256/{label}", 48), "big")
        return P256Key.from_scalar((wide % (P256_ORDER - 1) + 1).to_bytes(32, "big"))

    def resolve(self, key: P256Key | str | None, default: P256Key) -> P256Key:
        """Return what a configuration means by `key`: the key, that of a label, or `default`."""
        return self.key(key) if isinstance(key, str) else given(key, default)

    def serial(self, label: str) -> int:
        """Return the serial number of the certificate of `label`: 20 octets, the first 40 to 7F."""
        return serial_number(self.derive(f"serial/{label}", 20))

    def platform(self, platform_id: str = "0") -> "SimulatedPlatform":
        """Return the platform of that name, with a leaf certificate under this PKI's CA.

        Raises:
            UsageError: the name is empty, not ASCII, or has a slash.
        """
        if not platform_id or not platform_id.isascii() or "/" in platform_id:
            raise UsageError("a platform id is ASCII without a slash")
        return SimulatedPlatform(self, platform_id)

    def issue_pck(self, label: str, key: P256Key, sgx: bytes) -> bytes:
        """Return the DER of the PCK certificate of `label` with the SGX extension `sgx`."""
        config = self.config
        return issue_certificate(
            Authority("Intel SGX PCK Certificate", key),
            self._pck_ca,
            serial=self.serial(label),
            validity=Window(config.not_before, config.pck_not_after or config.not_after),
            crl_url=f"{config.crl_base_url}/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
            path_length=None,
            sgx=sgx,
        )

    def collateral(self, now: float, config: CollateralConfig | None = None) -> Collateral:
        """Return the collateral in force at `now`; it is the same for a whole UTC day.

        Args:
            now: Unix seconds.
            config: what to say otherwise than by default.

        Raises:
            UsageError: `now` is not a time from 1970-01-02 to 9999-12-02, or a `next_update` of
                `config` leads out of 1950 to 9999.
        """
        config = config or CollateralConfig()
        issue, next_update = collateral_window(now - config.age.total_seconds())
        tcb_info = _compact(_tcb_info(config.tcb_info, self.config, issue, next_update))
        qe_identity = _compact(_qe_identity(config.qe_identity, self.config, issue, next_update))
        signer_chain = _pem(self.tcb_signing_der, self.root_der)
        sign = self._tcb_signing.key.sign
        by, chain = sign, signer_chain
        if config.tcb_info.by_platform:
            platform = self.platform()
            by, chain = platform.pck_key.sign, platform.pck_chain
        root_crl = self._crl(self._root, config.root_crl, issue, next_update)
        return Collateral(
            pck_crl_issuer_chain=_pem(self.pck_ca_der, self.root_der),
            root_ca_crl=root_crl,
            pck_crl=root_crl
            if config.pck_crl_is_roots
            else self._crl(self._pck_ca, config.pck_crl, issue, next_update),
            tcb_info_issuer_chain=chain,
            tcb_info=_altered(config, "tcb_info", tcb_info),
            tcb_info_signature=by(tcb_info.encode()),
            qe_identity_issuer_chain=signer_chain,
            qe_identity=_altered(config, "qe_identity", qe_identity),
            qe_identity_signature=sign(qe_identity.encode()),
        )

    def _issue(self, label: str, subject: Authority, path_length: int | None) -> bytes:
        return issue_certificate(
            subject,
            self._root,
            serial=self.serial(label),
            validity=Window(self.config.not_before, self.config.not_after),
            crl_url=f"{self.config.crl_base_url}/IntelSGXRootCA.der",
            path_length=path_length,
        )

    def _crl(self, issuer: Authority, config: CrlConfig, issue: int, next_update: int) -> bytes:
        start = given(config.this_update, issue)
        end = _end(config.next_update, start, next_update)
        return issue_crl(
            Authority(issuer.name, self.resolve(config.key, issuer.key)),
            window=Window(_moment(start), _moment(end)),
            number=given(config.number, start // _DAY),
            revoked=[self.serial(of) if isinstance(of, str) else of for of in config.revoked],
        )


class SimulatedPlatform:
    """One machine: its PCK leaf, its attestation key, its names."""

    def __init__(self, pki: SimulatedPki, platform_id: str) -> None:
        scope = f"platform/{platform_id}"
        config = pki.config
        self.ppid: bytes = pki.derive(f"{scope}/ppid", 16)
        self.qe_id: bytes = pki.derive(f"{scope}/qe-id", 16)
        self.instance_id: bytes = pki.derive(f"{scope}/instance-id", 16)
        self.pck_key: P256Key = pki.key(f"{scope}/pck-leaf")
        self.attestation_key: P256Key = pki.key(f"{scope}/attestation")
        self.sgx_extension: bytes = sgx_extension(
            SgxPlatform(
                ppid=self.ppid,
                components=config.cpusvn,
                pcesvn=config.pcesvn,
                cpusvn=config.cpusvn,
                pceid=config.pceid,
                fmspc=config.fmspc,
                sgx_type=config.sgx_type,
                instance_id=self.instance_id,
                dynamic_platform=config.dynamic_platform,
                cached_keys=config.cached_keys,
                smt_enabled=config.smt_enabled,
            )
        )
        self.pck_der: bytes = pki.issue_pck(f"{scope}/pck-leaf", self.pck_key, self.sgx_extension)
        # PEM: leaf, CA, root
        self.pck_chain: str = _pem(self.pck_der, pki.pck_ca_der, pki.root_der)


def derive(seed: bytes, label: str, length: int) -> bytes:
    """Return `length` secret bytes that depend on `seed` and `label` alone (HKDF-SHA256)."""
    return hkdf_sha256(seed, label.encode(), length, _SALT)


def serial_number(octets: bytes) -> int:
    """Return a certificate's serial number of 20 octets, of which the first is 40 to 7F."""
    return int.from_bytes(bytes([octets[0] & 0x3F | 0x40]) + octets[1:], "big")


def collateral_window(now: float) -> tuple[int, int]:
    """Return issue and next update of the collateral in force at `now`, all in Unix seconds.

    Issued at the midnight (UTC) before the last one, for 30 days: a verifier's clock may be a day
    late or four weeks early.

    Raises:
        UsageError: `now` is not a time that certificates can say.
    """
    day = math.floor(now / _DAY) - 1 if math.isfinite(now) else -1
    if not 0 <= day <= _LAST_DAY - 30:
        raise UsageError("the time must be in 1970-01-02 to 9999-12-02")
    return day * _DAY, (day + 30) * _DAY


def _end(end: int | timedelta | None, issue: int, default: int) -> int:
    """Return when a part ends that was issued at `issue`."""
    if not isinstance(end, timedelta):
        return given(end, default)
    moment = issue + int(end.total_seconds())
    if not _EARLIEST <= moment < (_LAST_DAY + 1) * _DAY:
        raise UsageError("next_update: the end must be in 1950 to 9999")
    return moment


def _altered(config: CollateralConfig, part: str, text: str) -> str:
    """Return a part as somebody left it who had it in hand after it was signed."""
    for name, old, new in config.altered:
        if name == part:
            text = text.replace(old, new, 1)
    return text


def _tcb_info(
    config: TcbInfoConfig, pki: PkiConfig, issue: int, next_update: int
) -> dict[str, Any]:
    """Return the TCB info, keys in the order of Intel's TDX TCB info, version 3."""
    module = {
        "mrsigner": _hex(config.module_mrsigner),
        "attributes": "00" * 8,
        "attributesMask": "FF" * 8,
    }
    levels = [_module_or_qe_level(level) for level in config.module_levels]
    return {
        "id": config.id,
        "version": config.version,
        "issueDate": _date(given(config.issue, issue)),
        "nextUpdate": _date(_end(config.next_update, given(config.issue, issue), next_update)),
        "fmspc": _hex(given(config.fmspc, pki.fmspc)),
        "pceId": _hex(given(config.pceid, pki.pceid)),
        "tcbType": 0,
        "tcbEvaluationDataNumber": config.evaluation_number,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": config.module_id, **module, "tcbLevels": levels}],
        "tcbLevels": _platform_levels(config, pki),
    }


def _platform_levels(config: TcbInfoConfig, pki: PkiConfig) -> list[dict[str, Any]]:
    """Return the two levels of the platform, the higher one first."""
    advisories = config.advisories
    if advisories is None:
        advisories = () if config.status == "UpToDate" else ("INTEL-SA-99999",)
    sgx = given(config.sgx_components, pki.cpusvn)
    high = {
        "sgxtcbcomponents": _components(sgx, _SGX_LABELS),
        "pcesvn": given(config.pcesvn, pki.pcesvn),
        "tdxtcbcomponents": _components(config.tdx_components, _TDX_LABELS),
    }
    low = {
        "sgxtcbcomponents": _components([max(0, svn - 1) for svn in sgx], _SGX_LABELS),
        "pcesvn": 5,
        "tdxtcbcomponents": _components([3, 0, 2] + [0] * 13, _TDX_LABELS),
    }
    return [
        _level(high, "2024-11-13T00:00:00Z", config.status, advisories),
        _level(low, "2018-01-04T00:00:00Z", "OutOfDate", ("INTEL-SA-99997",)),
    ]


def _qe_identity(
    config: QeIdentityConfig, pki: PkiConfig, issue: int, next_update: int
) -> dict[str, Any]:
    """Return the QE identity, keys in the order of Intel's enclave identity, version 2."""
    levels = config.levels
    if levels is None:
        levels = (
            TcbLevel(pki.qe_isvsvn, "2024-11-13T00:00:00Z", "UpToDate"),
            TcbLevel(2, "2020-11-11T00:00:00Z", "OutOfDate", ("INTEL-SA-99996",)),
        )
    return {
        "id": config.id,
        "version": config.version,
        "issueDate": _date(given(config.issue, issue)),
        "nextUpdate": _date(_end(config.next_update, given(config.issue, issue), next_update)),
        "tcbEvaluationDataNumber": config.evaluation_number,
        "miscselect": f"{config.miscselect:08X}",
        "miscselectMask": "FFFFFFFF",
        "attributes": _hex(config.attributes),
        "attributesMask": _ATTRIBUTES_MASK,
        "mrsigner": _hex(given(config.mrsigner, pki.qe_mrsigner)),
        "isvprodid": given(config.isvprodid, pki.qe_isvprodid),
        "tcbLevels": [_module_or_qe_level(level) for level in levels],
    }


def _module_or_qe_level(level: TcbLevel) -> dict[str, Any]:
    return _level({"isvsvn": level.isvsvn}, level.date, level.status, level.advisories)


def _level(
    tcb: dict[str, Any], date: str, status: str, advisories: Sequence[str]
) -> dict[str, Any]:
    level = {"tcb": tcb, "tcbDate": date, "tcbStatus": status}
    if advisories:
        level["advisoryIDs"] = list(advisories)
    return level


def _components(
    svns: Iterable[int], labels: Sequence[dict[str, str]]
) -> list[dict[str, int | str]]:
    padded = [*labels, *[{}] * 16]
    return [{"svn": svn, **label} for svn, label in zip(svns, padded, strict=False)]


def _compact(body: dict[str, Any]) -> str:
    """Return JSON without a blank: clients parse and write it again before they check it."""
    return json.dumps(body, separators=(",", ":"))


def _hex(data: bytes) -> str:
    return data.hex().upper()


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _date(seconds: int) -> str:
    return _moment(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pem(*certificates: bytes) -> str:
    return "".join(armour("CERTIFICATE", der) for der in certificates)
