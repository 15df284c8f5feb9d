"""Scenarios of TDs and SEV-SNP guests: altered evidence, collateral, certificates and TCB levels.

A verifier has the named outcome for each, if the simulator's clock is within the validity of its
certificates, 2020 to 2049 (UTC); `snp-vcek-expired` from February 2020. Most names are those of the
simulated PKI's published test vectors.
"""

from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal

from attestkit.backends.simulator.images.os_image import ImageConfig
from attestkit.backends.simulator.scenarios import config as configs
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.named_case import Cases, NamedCase

_DAY: Final = timedelta(days=1)
# Collateral is issued at the midnight before the last one, so this ended at least 12 hours ago.
_EXPIRED: Final = timedelta(hours=12)
_UNRELATED: Final = "stranger"  # label of a key or PKI without relation to the platform
_SVN: Final = bytes(13)  # the unused bytes of the 16 bytes of TEE_TCB_SVN


def _row(scenario: Scenario, outcome: str, text: str) -> NamedCase:
    return NamedCase(scenario.platform, outcome, text, scenario)


def _collateral(**parts: Any) -> Scenario:
    return Scenario(collateral=configs.CollateralConfig(**parts))


def _tcb(**fields: Any) -> Scenario:
    return _collateral(tcb_info=configs.TcbInfoConfig(**fields))


def _qe(**fields: Any) -> Scenario:
    return _collateral(qe_identity=configs.QeIdentityConfig(**fields))


def _crl(part: Literal["root_crl", "pck_crl"], **fields: Any) -> Scenario:
    return _collateral(**{part: configs.CrlConfig(**fields)})


def _quote(version: int | None = None, **fields: Any) -> Scenario:
    return Scenario(quote=configs.QuoteConfig(**fields), quote_version=version)


def _body(name: str, value: bytes, version: int | None = None) -> Scenario:
    return Scenario(body=((name, value),), quote_version=version)


def _snp(anchor: str | None = None, **fields: Any) -> Scenario:
    return Scenario(platform="snp", snp=configs.SnpConfig(**fields), trust_anchor=anchor)


_TCB_LEVEL: Final = "the platform's TCB level has the status of the name"


def _status(status: str, outcome: str | None = None) -> NamedCase:
    return _row(_tcb(status=status), outcome or status, _TCB_LEVEL)


TEES: Final[Cases] = {
    # Up to date.
    "ok-v4": _row(Scenario(quote_version=4), "UpToDate", "an up-to-date TD, quotes of version 4"),
    "ok-v5-td10": _row(
        Scenario(quote_version=5, td10=True),
        "UpToDate",
        "an up-to-date TD, quotes of version 5 with a TD 1.0 body",
    ),
    "ok-v5-td15": _row(
        Scenario(quote_version=5),
        "UpToDate",
        "an up-to-date TD, quotes of version 5 with a TD 1.5 body",
    ),
    "ok-at-issue-date": _row(
        _collateral(age=-_DAY), "UpToDate", "collateral issued at the last midnight (UTC)"
    ),
    "ok-last-second": _row(
        _collateral(age=28 * _DAY),
        "UpToDate",
        "collateral that is valid until the next midnight (UTC)",
    ),
    "ok-zero-padded-quote": _row(_quote(padding=64), "UpToDate", "64 zero bytes after the quote"),
    "ok-other-serial-revoked": _row(
        _crl("pck_crl", revoked=(0x1234567890,)), "UpToDate", "another platform is revoked"
    ),
    "ok-second-platform": _row(
        Scenario(platform_id="1"), "UpToDate", "another platform under the same root"
    ),
    # OS images.
    "dstack-0.5": _row(
        Scenario(image=ImageConfig(measurement_version=3, app_info_array=8)),
        "UpToDate",
        "an image from before dstack 0.6: a document of version 3, app info as an array",
    ),
    "dstack-0.6": _row(
        Scenario(),
        "UpToDate",
        "an image of dstack 0.6: a document of version 4, the kernel header normalized",
    ),
    "kernel-header-patched": _row(
        Scenario(image=ImageConfig(kernel_header_normalized=False)),
        "UpToDate",
        "an image whose measurements are those of a kernel that QEMU has patched",
    ),
    # Altered evidence.
    "wrong-root": _row(
        Scenario(trust_anchor=_UNRELATED),
        "untrusted_root",
        "the trust anchor is not the root of quote and collateral",
    ),
    "untrusted-root": _row(
        Scenario(platform_pki=_UNRELATED),
        "untrusted_root",
        "quote and collateral have different roots",
    ),
    "report-data-altered": _row(
        _quote(altered=("report_data",)),
        "quote_bad_signature",
        "a bit of the report data was flipped after signing",
    ),
    "rtmr3-altered": _row(
        _quote(altered=("rtmr3",)), "quote_bad_signature", "a bit of RTMR3 was flipped"
    ),
    "v5-altered": _row(
        _quote(5, altered=("mr_config_id",)),
        "quote_bad_signature",
        "a bit of MR_CONFIG_ID was flipped, in a quote of version 5",
    ),
    "vendor-id-wrong": _row(
        _quote(vendor_id=bytes(16)), "qe_vendor_id", "the quote has an unknown QE vendor id"
    ),
    "truncated": _row(
        _quote(cut=100), "sig_data_truncated", "the last 100 bytes of the quote are missing"
    ),
    "attestation-key-unbound": _row(
        _quote(attestation_key=_UNRELATED, bound_key="platform/0/attestation"),
        "qe_binding",
        "the QE report certifies another attestation key than the one that signed",
    ),
    "qe-report-wrong-pck-key": _row(
        _quote(pck_key=_UNRELATED),
        "qe_report_bad_signature",
        "the QE report is signed by another key than that of the PCK certificate",
    ),
    # Collateral.
    "collateral-expired": _row(
        _collateral(age=31 * _DAY), "crl_expired", "all of the collateral has expired"
    ),
    "collateral-not-yet-valid": _row(
        _collateral(age=-2 * _DAY), "crl_expired", "the collateral is from tomorrow"
    ),
    "tcb-info-expired": _row(
        _tcb(next_update=_EXPIRED), "tcb_info_expired", "the TCB info has expired"
    ),
    "qe-identity-expired": _row(
        _qe(next_update=_EXPIRED), "qe_identity_expired", "the QE identity has expired"
    ),
    "pck-crl-expired": _row(
        _crl("pck_crl", next_update=_EXPIRED), "crl_expired", "the PCK CA's CRL has expired"
    ),
    "root-crl-expired": _row(
        _crl("root_crl", next_update=_EXPIRED), "crl_expired", "the root's CRL has expired"
    ),
    "pck-crl-is-root-crl": _row(
        _collateral(pck_crl_is_roots=True),
        "crl_missing",
        "the root's CRL replaces that of the PCK CA",
    ),
    "fmspc-mismatch": _row(
        _tcb(fmspc=bytes(6)), "tcb_info_mismatch", "the TCB info is for another FMSPC"
    ),
    "pceid-mismatch": _row(
        _tcb(pceid=b"\0\1"), "tcb_info_mismatch", "the TCB info is for another PCE"
    ),
    "tcb-info-altered": _row(
        _collateral(altered=(("tcb_info", "UpToDate", "OutOfDate"),)),
        "tcb_info_bad_signature",
        "a status in the TCB info was changed after signing",
    ),
    "tcb-info-wrong-signer": _row(
        _tcb(by_platform=True), "chain_length", "the TCB info is signed by the platform"
    ),
    "qe-identity-altered": _row(
        _collateral(altered=(("qe_identity", '"isvprodid":2', '"isvprodid":3'),)),
        "qe_identity_bad_signature",
        "the product in the QE identity was changed after signing",
    ),
    "qe-identity-for-sgx": _row(
        _qe(id="QE"), "qe_identity_wrong_type", "the QE identity is for the quoting enclave of SGX"
    ),
    # Revoked certificates.
    "pck-revoked": _row(
        _crl("pck_crl", revoked=("platform/0/pck-leaf",)),
        "cert_revoked",
        "the platform's PCK certificate is revoked",
    ),
    "pck-ca-revoked": _row(
        _crl("root_crl", revoked=("pck-platform-ca",)),
        "cert_revoked",
        "the CA that issued the platform's certificate is revoked",
    ),
    "tcb-signer-revoked": _row(
        _crl("root_crl", revoked=("tcb-signing",)),
        "cert_revoked",
        "the certificate that signs TCB info and QE identity is revoked",
    ),
    # TCB levels.
    "tcb-UpToDate": _row(Scenario(), "UpToDate", _TCB_LEVEL),
    **{
        f"tcb-{status}": _status(status)
        for status in (
            "SWHardeningNeeded",
            "ConfigurationNeeded",
            "ConfigurationAndSWHardeningNeeded",
            "OutOfDate",
            "OutOfDateConfigurationNeeded",
        )
    },
    "tcb-Revoked": _status("Revoked", "tcb_revoked"),
    "tcb-below-top-level": _row(
        _tcb(pcesvn=14), "OutOfDate", "the platform is below the first TCB level, and at the second"
    ),
    "tcb-below-all-levels": _row(
        Scenario(
            pki=configs.PkiConfig(cpusvn=bytes(16)),
            collateral=configs.CollateralConfig(
                configs.TcbInfoConfig(sgx_components=configs.PkiConfig().cpusvn)
            ),
        ),
        "tcb_not_supported",
        "the platform is below every TCB level",
    ),
    "module-OutOfDate": _row(
        _body("tee_tcb_svn", bytes([5, 1, 3]) + _SVN, 4),
        "OutOfDate",
        "the TDX module is out of date",
    ),
    "module-update": _row(
        _body("tee_tcb_svn", bytes([5, 1, 3]) + _SVN, 5),
        "TDRelaunchAdvised",
        "the TDX module was out of date at launch of the TD, and was updated since",
    ),
    "qe-OutOfDate": _row(_quote(qe_isvsvn=2), "OutOfDate", "the quoting enclave is out of date"),
    "qe-below-all-levels": _row(
        _quote(qe_isvsvn=1), "tcb_not_supported", "the quoting enclave is below every TCB level"
    ),
    "qe-mrsigner-mismatch": _row(
        _quote(qe_mrsigner=b"\x44" * 32),
        "qe_identity_mismatch",
        "MRSIGNER of the quoting enclave is not that of the QE identity",
    ),
    "qe-debug": _row(
        _quote(qe_attributes=bytes.fromhex("1700000000000000e700000000000000")),
        "qe_identity_mismatch",
        "the quoting enclave is in debug mode",
    ),
    # Attributes of the TD.
    "td-debug": _row(
        _body("td_attributes", bytes.fromhex("0100001000000000")),
        "td_debug",
        "the TD is in debug mode: its host can read its memory",
    ),
    "td-no-sept-ve-disable": _row(
        _body("td_attributes", bytes(8)),
        "td_attributes",
        "SEPT_VE_DISABLE is off: the host can raise exceptions inside the TD",
    ),
    "service-td": _row(
        _body("mr_service_td", b"\1" * 48, 5),
        "service_td",
        "a service TD, such as one for migration, is bound to the TD",
    ),
    # SEV-SNP.
    "snp": _row(_snp(), "UpToDate", "an up-to-date SEV-SNP guest"),
    "snp-v2": _row(
        _snp(report_version=2), "UpToDate", "reports of version 2, which do not name the processor"
    ),
    "snp-v4": _row(_snp(report_version=4), "UpToDate", "reports of version 4"),
    "snp-v5": _row(_snp(report_version=5), "UpToDate", "reports of version 5"),
    "snp-milan": _row(_snp(product="Milan"), "UpToDate", "a guest on a Milan processor"),
    "snp-turin": _row(_snp(product="Turin"), "UpToDate", "a guest on a Turin processor"),
    "snp-vlek": _row(
        _snp(signing_key="VLEK"), "vlek_providers", "reports signed by a cloud provider's key"
    ),
    "snp-debug": _row(
        _snp(policy=0xB0000), "debug", "the policy of the guest allows debugging by the host"
    ),
    "snp-wrong-chip": _row(
        _snp(vcek_chip=_UNRELATED), "chip_id_mismatch", "the VCEK certificate is for another chip"
    ),
    "snp-tcb-mismatch": _row(
        _snp(vcek_tcb=bytes([9, 0, 0, 0, 0, 0, 20, 72])),
        "tcb_mismatch",
        "the VCEK certificate is for an older TCB than that of the report",
    ),
    "snp-bad-signature": _row(
        _snp(report_key=_UNRELATED), "report_bad_signature", "the report is not signed by the VCEK"
    ),
    "snp-vcek-expired": _row(
        _snp(vcek_not_after=datetime(2020, 2, 1, tzinfo=timezone.utc)),
        "cert_expired",
        "the VCEK certificate expired on 2020-02-01",
    ),
    "snp-untrusted-root": _row(
        _snp(_UNRELATED),
        "untrusted_root",
        "the trust anchor is not the root of the report's certificates",
    ),
}
