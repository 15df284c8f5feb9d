"""Simulated Intel PKI: root, certificates, CRLs and collateral, derived from a seed.

Every byte is a function of seed, configuration, platform and time. Names are Intel's, because
verifiers require them; simulated certificates differ by the root's key, the reserved host name of
the CRLs, and the FMSPC. The seed allows forging evidence: verifiers trust this root only on
request.
"""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import (
    Authority,
    SgxPlatform,
    issue_certificate,
    issue_crl,
    sgx_extension,
)
from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.pki.cloud_pki import p256_key, serial_number
from attestkit.backends.simulator.scenarios import config as configs
from attestkit.collateral import Collateral
from attestkit.errors import UsageError

_SALT: Final = b"attestkit/sim-pki/v1"
_DAY: Final = 86400  # seconds
_LAST_DAY: Final = 2_932_896  # 9999-12-31, the last day of datetime
_EARLIEST: Final = -631_152_000  # 1950-01-01, the first time of X.509

_ROOT: Final = "root-ca"
_PCK_CA: Final = "pck-platform-ca"
_TCB_SIGNING: Final = "tcb-signing"

# Category and type of the TCB components in Intel's TCB info; further components have none.
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

    Any number of platforms share them. All attributes that end in `_der` are certificates in DER.
    """

    def __init__(self, seed: bytes, *, config: configs.PkiConfig | None = None) -> None:
        """Derive the keys and issue the certificates.

        Args:
            seed: 32 bytes from which all keys are derived.
            config: Content of the certificates; by default of an up-to-date platform.

        Raises:
            UsageError: If the seed is not 32 bytes.
        """
        check_bytes("seed", seed, 32)
        self._seed = seed
        self.config: configs.PkiConfig = config or configs.PkiConfig()
        self._root = Authority("Intel SGX Root CA", self.key(_ROOT))
        self._pck_ca = Authority("Intel SGX PCK Platform CA", self.key(_PCK_CA))
        self._tcb_signing = Authority("Intel SGX TCB Signing", self.key(_TCB_SIGNING))
        self.root_der: bytes = self._issue(_ROOT, self._root, path_length=1)
        self.pck_ca_der: bytes = self._issue(_PCK_CA, self._pck_ca, path_length=0)
        self.tcb_signing_der: bytes = self._issue(_TCB_SIGNING, self._tcb_signing, path_length=None)

    @property
    def root_key(self) -> P256Key:
        """The private key of the root, for certificates of the cloud that has this platform."""
        return self._root.key

    def derive(self, label: str, length: int) -> bytes:
        """Return `length` bytes derived from the seed and `label` (HKDF-SHA256)."""
        return derive(self._seed, label, length)

    def other(self, label: str) -> "SimulatedPki":
        """Return another PKI of the same configuration, whose seed is derived with `label`."""
        return SimulatedPki(self.derive(f"seed/{label}", 32), config=self.config)

    def key(self, label: str) -> P256Key:
        """Return the private P-256 key that is derived from the seed and `label`."""
        return p256_key(self.derive, label)

    def resolve(self, key: P256Key | str | None, default: P256Key) -> P256Key:
        """Return `key` itself or, if it is text, the key of that label; None: `default`."""
        return self.key(key) if isinstance(key, str) else configs.value_or(key, default)

    def serial(self, label: str) -> int:
        """Return the serial number of the certificate of `label`: 20 octets, the first 40 to 7F."""
        return serial_number(self.derive, label)

    def platform(self, platform_id: str = "0") -> "SimulatedPlatform":
        """Return a platform with a PCK certificate of this PKI.

        Args:
            platform_id: Text from which the platform's keys and identifiers are derived.

        Raises:
            UsageError: If the id is empty, not ASCII, or contains a slash.
        """
        if not platform_id or not platform_id.isascii() or "/" in platform_id:
            text = f"platform_id: must be non-empty ASCII without a slash, not {platform_id!r}"
            raise UsageError(text, reason="wrong_value")
        return SimulatedPlatform(self, platform_id)

    def issue_pck(self, label: str, key: P256Key, sgx: bytes) -> bytes:
        """Return a PCK certificate (DER) of `key`, with the SGX extension `sgx` (DER).

        `label` names it in the derivation of its serial number.
        """
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

    def collateral(self, now: float, config: configs.CollateralConfig | None = None) -> Collateral:
        """Return the collateral at a time; it is constant during a UTC day.

        Args:
            now: Unix time.
            config: Content of the collateral; None: that for an up-to-date platform.

        Raises:
            UsageError: If `now`, less the age in `config`, is not in 1970-01-02 to 9999-12-02, or
                a `next_update` of `config` is not in 1950 to 9999.
        """
        config = config or configs.CollateralConfig()
        issue, next_update = collateral_window(now - config.age.total_seconds())
        tcb_info = _to_json(_tcb_info(config.tcb_info, self.config, issue, next_update))
        qe_identity = _to_json(_qe_identity(config.qe_identity, self.config, issue, next_update))
        signer_chain = _pem(self.tcb_signing_der, self.root_der)
        sign = self._tcb_signing.key.sign
        by, chain = sign, signer_chain
        if config.tcb_info.by_platform:
            platform = self.platform()
            by, chain = platform.pck_key.sign, platform.pck_chain
        root_crl = self._crl(self._root, config.root_crl, issue, next_update)
        pck_crl = self._crl(self._pck_ca, config.pck_crl, issue, next_update)
        return Collateral(
            pck_crl_issuer_chain=_pem(self.pck_ca_der, self.root_der),
            root_ca_crl=root_crl,
            pck_crl=root_crl if config.pck_crl_is_roots else pck_crl,
            tcb_info_issuer_chain=chain,
            tcb_info=_apply_alterations(config, "tcb_info", tcb_info),
            tcb_info_signature=by(tcb_info.encode()),
            qe_identity_issuer_chain=signer_chain,
            qe_identity=_apply_alterations(config, "qe_identity", qe_identity),
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

    def _crl(
        self, issuer: Authority, config: configs.CrlConfig, issue: int, next_update: int
    ) -> bytes:
        start = configs.value_or(config.this_update, issue)
        end = _next_update(config.next_update, start, next_update)
        return issue_crl(
            Authority(issuer.name, self.resolve(config.key, issuer.key)),
            window=Window(_to_datetime(start), _to_datetime(end)),
            number=configs.value_or(config.number, start // _DAY),
            revoked=[self.serial(of) if isinstance(of, str) else of for of in config.revoked],
        )


class SimulatedPlatform:
    """A simulated Intel platform: its PCK certificate, attestation key and identifiers.

    `SimulatedPki.platform` creates it. `ppid`, `qe_id` and `instance_id` are 16 bytes each;
    `pck_chain` is PEM: leaf, CA, root.
    """

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
    """Return `length` secret bytes derived from `seed` and `label` (HKDF-SHA256)."""
    return hkdf_sha256(seed, label.encode(), length, _SALT)


def collateral_window(now: float) -> tuple[int, int]:
    """Return Unix times of issue and next update of the collateral that is current at `now`.

    Collateral is issued at the midnight (UTC) before the last one, for 30 days, so that a
    verifier's clock may be one day slow or four weeks fast.

    Raises:
        UsageError: If `now` is not in 1970-01-02 to 9999-12-02.
    """
    day = math.floor(now / _DAY) - 1 if math.isfinite(now) else -1
    if not 0 <= day <= _LAST_DAY - 30:
        raise UsageError(
            f"time: must be 1970-01-02 to 9999-12-02, not {now!r}", reason="out_of_range"
        )
    return day * _DAY, (day + 30) * _DAY


def _next_update(end: int | timedelta | None, issue: int, default: int) -> int:
    """Return the time of the next update of a part of the collateral, in Unix time.

    Args:
        end: Configured time in Unix time, or relative to `issue`; None: `default`.
        issue: Unix time at which the part is issued.
        default: Time if none is configured.
    """
    if not isinstance(end, timedelta):
        return configs.value_or(end, default)
    moment = issue + int(end.total_seconds())
    if not _EARLIEST <= moment < (_LAST_DAY + 1) * _DAY:
        raise UsageError(
            f"next_update: must be in 1950 to 9999, not {end} after issue", reason="out_of_range"
        )
    return moment


def _apply_alterations(config: configs.CollateralConfig, part: str, text: str) -> str:
    """Return `text`, the JSON of the collateral's `part`, with the configured alterations.

    `part` is "tcb_info" or "qe_identity".
    """
    for name, old, new in config.altered:
        if name == part:
            text = text.replace(old, new, 1)
    return text


def _dates(
    config: configs.TcbInfoConfig | configs.QeIdentityConfig, issue: int, next_update: int
) -> dict[str, str]:
    start = configs.value_or(config.issue, issue)
    end = _next_update(config.next_update, start, next_update)
    return {"issueDate": _format_date(start), "nextUpdate": _format_date(end)}


def _tcb_info(
    config: configs.TcbInfoConfig, pki: configs.PkiConfig, issue: int, next_update: int
) -> dict[str, Any]:
    """Return the TCB info, with members in the order of Intel's version 3.

    `issue` and `next_update` are Unix times that hold unless `config` has others.
    """
    return {
        "id": config.id,
        "version": config.version,
        **_dates(config, issue, next_update),
        "fmspc": _hex(configs.value_or(config.fmspc, pki.fmspc)),
        "pceId": _hex(configs.value_or(config.pceid, pki.pceid)),
        "tcbType": 0,
        "tcbEvaluationDataNumber": config.evaluation_number,
        **(_tdx_modules(config) if config.tdx else {}),
        "tcbLevels": _platform_levels(config, pki),
    }


def _tdx_modules(config: configs.TcbInfoConfig) -> dict[str, Any]:
    module = {
        "mrsigner": _hex(config.module_mrsigner),
        "attributes": "00" * 8,
        "attributesMask": "FF" * 8,
    }
    levels = [_svn_level(level) for level in config.module_levels]
    return {
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": config.module_id, **module, "tcbLevels": levels}],
    }


def _platform_levels(config: configs.TcbInfoConfig, pki: configs.PkiConfig) -> list[dict[str, Any]]:
    """Return the two TCB levels of the platform, the higher one first."""
    advisories = config.advisories
    if advisories is None:
        advisories = () if config.status == "UpToDate" else ("INTEL-SA-99999",)
    sgx = configs.value_or(config.sgx_components, pki.cpusvn)
    high: dict[str, Any] = {
        "sgxtcbcomponents": _components(sgx, _SGX_LABELS),
        "pcesvn": configs.value_or(config.pcesvn, pki.pcesvn),
    }
    low: dict[str, Any] = {
        "sgxtcbcomponents": _components([max(0, svn - 1) for svn in sgx], _SGX_LABELS),
        "pcesvn": 5,
    }
    if config.tdx:
        high["tdxtcbcomponents"] = _components(config.tdx_components, _TDX_LABELS)
        low["tdxtcbcomponents"] = _components([3, 0, 2] + [0] * 13, _TDX_LABELS)
    return [
        _level(high, "2024-11-13T00:00:00Z", config.status, advisories),
        _level(low, "2018-01-04T00:00:00Z", "OutOfDate", ("INTEL-SA-99997",)),
    ]


def _qe_identity(
    config: configs.QeIdentityConfig, pki: configs.PkiConfig, issue: int, next_update: int
) -> dict[str, Any]:
    """Return the QE identity, with members in the order of Intel's version 2.

    `issue` and `next_update` are Unix times that hold unless `config` has others.
    """
    levels = config.levels
    if levels is None:
        levels = (
            configs.TcbLevel(pki.qe_isvsvn, "2024-11-13T00:00:00Z", "UpToDate"),
            configs.TcbLevel(2, "2020-11-11T00:00:00Z", "OutOfDate", ("INTEL-SA-99996",)),
        )
    return {
        "id": config.id,
        "version": config.version,
        **_dates(config, issue, next_update),
        "tcbEvaluationDataNumber": config.evaluation_number,
        "miscselect": f"{config.miscselect:08X}",
        "miscselectMask": "FFFFFFFF",
        "attributes": _hex(config.attributes),
        "attributesMask": _ATTRIBUTES_MASK,
        "mrsigner": _hex(configs.value_or(config.mrsigner, pki.qe_mrsigner)),
        "isvprodid": configs.value_or(config.isvprodid, pki.qe_isvprodid),
        "tcbLevels": [_svn_level(level) for level in levels],
    }


def _svn_level(level: configs.TcbLevel) -> dict[str, Any]:
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


def _to_json(body: dict[str, Any]) -> str:
    """Return `body` as compact JSON: some clients re-encode it before they verify the signature."""
    return json.dumps(body, separators=(",", ":"))


def _hex(data: bytes) -> str:
    return data.hex().upper()


def _to_datetime(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _format_date(seconds: int) -> str:
    return _to_datetime(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pem(*certificates: bytes) -> str:
    return "".join(encode_pem("CERTIFICATE", der) for der in certificates)
