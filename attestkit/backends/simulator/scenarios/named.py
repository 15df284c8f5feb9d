"""Scenarios by name: what can be wrong, or odd, with a simulated platform and its endorsements.

Each gives a quote and collateral that a strict verifier judges as named whenever the simulator's
clock shows a time from 2020 to 2049 (UTC), in which its certificates are valid; `snp-vcek-expired`
from February 2020. Most names are those of the simulated PKI's published test vectors.
"""

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple

from attestkit._sanitize import near, shown
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    QuoteConfig,
    Scenario,
    SnpConfig,
    TcbInfoConfig,
)
from attestkit.errors import UsageError

__all__ = ["NAMED", "Named", "chosen_scenario", "named_scenarios", "scenario"]


def chosen_scenario(chosen: object, platform: object = None) -> Scenario:
    """Return what a caller means by `chosen`: a name, a scenario, or None for a healthy guest.

    Raises:
        UsageError: it is neither, no scenario is called so, or it is not of `platform`: "tdx" or
            "snp"; None leaves that to the scenario.
    """
    if platform not in (None, "tdx", "snp"):
        raise UsageError(f"the simulator's platform is tdx or snp, not {platform!r}")
    if chosen is None:
        return Scenario(platform="snp") if platform == "snp" else Scenario()
    if isinstance(chosen, str):
        # Late: a healthy guest, which most are, has no use for the table.

        chosen = scenario(chosen)
    if not isinstance(chosen, Scenario):
        raise UsageError("a scenario is a name or a Scenario")
    try:
        hash(chosen)
    except TypeError as error:
        raise UsageError("the values of a scenario cannot change: tuples, not lists") from error
    if platform not in (None, chosen.platform):
        raise UsageError(f"this scenario is one of platform {chosen.platform}, not {platform}")
    return chosen


_DAY: Final = timedelta(days=1)
# Issued at the midnight before the last one, this is over for twelve hours at least.
_OVER: Final = timedelta(hours=12)
_STRANGER: Final = "stranger"  # the label of keys, or of a PKI, that nothing else uses
_SVN: Final = bytes(13)  # of the 16 bytes that a TD's TCB has those that nothing uses


class Named(NamedTuple):
    """A scenario, and what is to be known of it before it is used."""

    scenario: Scenario
    outcome: str  # the TCB status with which a strict verifier accepts, else why it refuses
    text: str  # one line for people


def _tcb(config: TcbInfoConfig) -> Scenario:
    return Scenario(collateral=CollateralConfig(tcb_info=config))


def _qe(config: QeIdentityConfig) -> Scenario:
    return Scenario(collateral=CollateralConfig(qe_identity=config))


def _crl(*, root: CrlConfig | None = None, pck: CrlConfig | None = None) -> Scenario:
    config = CollateralConfig(root_crl=root or CrlConfig(), pck_crl=pck or CrlConfig())
    return Scenario(collateral=config)


def _quote(config: QuoteConfig) -> Scenario:
    return Scenario(quote=config)


def _body(name: str, value: bytes, version: int | None = None) -> Scenario:
    return Scenario(body=((name, value),), quote_version=version)


def _snp(config: SnpConfig) -> Scenario:
    return Scenario(platform="snp", snp=config)


def _collateral(config: CollateralConfig) -> Scenario:
    return Scenario(collateral=config)


def _status(status: str) -> Named:
    text = f"the platform's TCB level is {status}"
    return Named(_tcb(TcbInfoConfig(status=status)), status, text)


_HEALTHY: Final = {
    "ok-v4": Named(Scenario(quote_version=4), "UpToDate", "a healthy TD, quotes of version 4"),
    "ok-v5-td10": Named(
        Scenario(quote_version=5, td10=True),
        "UpToDate",
        "a healthy TD, quotes of version 5 with a TD 1.0 body",
    ),
    "ok-v5-td15": Named(
        Scenario(quote_version=5),
        "UpToDate",
        "a healthy TD, quotes of version 5 with a TD 1.5 body",
    ),
    "ok-at-issue-date": Named(
        _collateral(CollateralConfig(age=-_DAY)), "UpToDate", "collateral of the last midnight"
    ),
    "ok-last-second": Named(
        _collateral(CollateralConfig(age=28 * _DAY)),
        "UpToDate",
        "collateral that is valid until the next midnight (UTC)",
    ),
    "ok-zero-padded-quote": Named(
        _quote(QuoteConfig(padding=64)), "UpToDate", "64 zero bytes behind the quote"
    ),
    "ok-other-serial-revoked": Named(
        _crl(pck=CrlConfig(revoked=(0x1234567890,))), "UpToDate", "another platform is revoked"
    ),
    "ok-second-platform": Named(
        Scenario(platform_id="1"), "UpToDate", "another machine under the same root"
    ),
}

_ALTERED: Final = {
    "wrong-root": Named(
        Scenario(trust_anchor=_STRANGER),
        "crl_bad_signature",
        "the trust anchor is another root than that of quote and collateral",
    ),
    "untrusted-root": Named(
        Scenario(maker=_STRANGER),
        "untrusted_root",
        "the quote's certificates lead to another root than the collateral's",
    ),
    "report-data-altered": Named(
        _quote(QuoteConfig(altered=("report_data",))),
        "quote_bad_signature",
        "a bit of the report data was flipped after it was signed",
    ),
    "rtmr3-altered": Named(
        _quote(QuoteConfig(altered=("rtmr3",))), "quote_bad_signature", "a bit of RTMR3 was flipped"
    ),
    "v5-altered": Named(
        replace(_quote(QuoteConfig(altered=("mr_config_id",))), quote_version=5),
        "quote_bad_signature",
        "a bit of MR_CONFIG_ID was flipped, in a quote of version 5",
    ),
    "vendor-id-wrong": Named(
        _quote(QuoteConfig(vendor_id=bytes(16))),
        "qe_vendor_id",
        "the quote is of an unknown vendor's quoting enclave",
    ),
    "truncated": Named(
        _quote(QuoteConfig(cut=100)),
        "sig_data_truncated",
        "the last 100 bytes of the quote are missing",
    ),
    "attestation-key-unbound": Named(
        _quote(QuoteConfig(attestation_key=_STRANGER, bound_key="platform/0/attestation")),
        "qe_binding",
        "the quoting enclave vouches for another key than the one that signed",
    ),
    "qe-report-wrong-pck-key": Named(
        _quote(QuoteConfig(pck_key=_STRANGER)),
        "qe_report_bad_signature",
        "the enclave's report is signed by another key than the PCK certificate's",
    ),
}

_COLLATERAL: Final = {
    "collateral-expired": Named(
        _collateral(CollateralConfig(age=31 * _DAY)),
        "crl_expired",
        "all of the collateral has expired",
    ),
    "collateral-not-yet-valid": Named(
        _collateral(CollateralConfig(age=-2 * _DAY)),
        "tcb_info_not_yet_valid",
        "the collateral is from tomorrow",
    ),
    "tcb-info-expired": Named(
        _tcb(TcbInfoConfig(next_update=_OVER)), "tcb_info_expired", "the TCB info has expired"
    ),
    "qe-identity-expired": Named(
        _qe(QeIdentityConfig(next_update=_OVER)),
        "qe_identity_expired",
        "the QE identity has expired",
    ),
    "pck-crl-expired": Named(
        _crl(pck=CrlConfig(next_update=_OVER)), "crl_expired", "the PCK CA's CRL has expired"
    ),
    "root-crl-expired": Named(
        _crl(root=CrlConfig(next_update=_OVER)), "crl_expired", "the root's CRL has expired"
    ),
    "pck-crl-is-root-crl": Named(
        _collateral(CollateralConfig(pck_crl_is_roots=True)),
        "crl_missing",
        "in place of the PCK CA's CRL there is the root's",
    ),
    "fmspc-mismatch": Named(
        _tcb(TcbInfoConfig(fmspc=bytes(6))), "tcb_info_mismatch", "the TCB info is of another FMSPC"
    ),
    "pceid-mismatch": Named(
        _tcb(TcbInfoConfig(pceid=b"\0\1")),
        "tcb_info_mismatch",
        "the TCB info is of another PCE; dcap-qvl alone does not look",
    ),
    "tcb-info-altered": Named(
        _collateral(CollateralConfig(altered=(("tcb_info", "UpToDate", "OutOfDate"),))),
        "tcb_info_bad_signature",
        "a status in the TCB info was changed after it was signed",
    ),
    "tcb-info-wrong-signer": Named(
        _tcb(TcbInfoConfig(by_platform=True)),
        "chain_length",
        "the platform signed its TCB info itself; dcap-qvl alone does not look",
    ),
    "qe-identity-altered": Named(
        _collateral(CollateralConfig(altered=(("qe_identity", '"isvprodid":2', '"isvprodid":3'),))),
        "qe_identity_bad_signature",
        "the product in the QE identity was changed after it was signed",
    ),
    "qe-identity-for-sgx": Named(
        _qe(QeIdentityConfig(id="QE")),
        "qe_identity_wrong_type",
        "the QE identity is that of SGX's quoting enclave",
    ),
}

_REVOKED: Final = {
    "pck-revoked": Named(
        _crl(pck=CrlConfig(revoked=("platform/0/pck-leaf",))),
        "cert_revoked",
        "the platform's PCK certificate is revoked",
    ),
    "pck-ca-revoked": Named(
        _crl(root=CrlConfig(revoked=("pck-platform-ca",))),
        "cert_revoked",
        "the CA that issued the platform's certificate is revoked",
    ),
    "tcb-signer-revoked": Named(
        _crl(root=CrlConfig(revoked=("tcb-signing",))),
        "cert_revoked",
        "the certificate that signs TCB info and QE identity is revoked",
    ),
}

_TCB: Final = {
    "tcb-UpToDate": Named(Scenario(), "UpToDate", "the platform's TCB level is UpToDate"),
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
    "tcb-Revoked": _status("Revoked")._replace(outcome="tcb_revoked"),
    "tcb-below-top-level": Named(
        _tcb(TcbInfoConfig(pcesvn=14)),
        "OutOfDate",
        "the platform is below the first level, and at the second",
    ),
    "tcb-below-all-levels": Named(
        Scenario(
            pki=PkiConfig(cpusvn=bytes(16)),
            collateral=CollateralConfig(TcbInfoConfig(sgx_components=PkiConfig().cpusvn)),
        ),
        "tcb_not_supported",
        "the platform is below every level",
    ),
    "module-OutOfDate": Named(
        _body("tee_tcb_svn", bytes([5, 1, 3]) + _SVN, 4),
        "OutOfDate",
        "the TDX module is out of date",
    ),
    "module-update": Named(
        _body("tee_tcb_svn", bytes([5, 1, 3]) + _SVN, 5),
        "TDRelaunchAdvised",
        "the TDX module was out of date at the TD's launch, and has been updated since",
    ),
    "qe-OutOfDate": Named(
        _quote(QuoteConfig(qe_isvsvn=2)), "OutOfDate", "the quoting enclave is out of date"
    ),
    "qe-below-all-levels": Named(
        _quote(QuoteConfig(qe_isvsvn=1)),
        "tcb_not_supported",
        "the quoting enclave is below every level",
    ),
    "qe-mrsigner-mismatch": Named(
        _quote(QuoteConfig(qe_mrsigner=b"\x44" * 32)),
        "qe_identity_mismatch",
        "the quoting enclave is signed by somebody else than its identity says",
    ),
    "qe-debug": Named(
        _quote(QuoteConfig(qe_attributes=bytes.fromhex("1700000000000000e700000000000000"))),
        "qe_identity_mismatch",
        "the quoting enclave is in debug mode",
    ),
}

_TD: Final = {
    "td-debug": Named(
        _body("td_attributes", bytes.fromhex("0100001000000000")),
        "td_debug",
        "the TD is in debug mode: its host may read its memory",
    ),
    "td-no-sept-ve-disable": Named(
        _body("td_attributes", bytes(8)),
        "td_attributes",
        "SEPT_VE_DISABLE is off: the host can raise exceptions inside the TD",
    ),
    "service-td": Named(
        _body("mr_service_td", b"\1" * 48, 5),
        "service_td",
        "a service TD, such as one for migration, is bound to the TD",
    ),
}

_SNP: Final = {
    "snp": Named(_snp(SnpConfig()), "UpToDate", "a healthy SEV-SNP guest"),
    "snp-debug": Named(
        _snp(SnpConfig(policy=0xB0000)),
        "debug",
        "the guest's policy lets its host debug it",
    ),
    "snp-wrong-chip": Named(
        _snp(SnpConfig(vcek_chip=_STRANGER)),
        "chip_id_mismatch",
        "the VCEK that comes with the report is another chip's",
    ),
    "snp-tcb-mismatch": Named(
        _snp(SnpConfig(vcek_tcb=bytes([9, 0, 0, 0, 0, 0, 20, 72]))),
        "tcb_mismatch",
        "the VCEK is for older firmware than the report says",
    ),
    "snp-bad-signature": Named(
        _snp(SnpConfig(report_key=_STRANGER)),
        "report_bad_signature",
        "the report is signed by another key than the VCEK",
    ),
    "snp-vcek-expired": Named(
        _snp(SnpConfig(vcek_not_after=datetime(2020, 2, 1, tzinfo=timezone.utc))),
        "cert_expired",
        "the VCEK was valid until 2020-02-01",
    ),
    "snp-untrusted-root": Named(
        replace(_snp(SnpConfig()), trust_anchor=_STRANGER),
        "untrusted_root",
        "the trust anchor is another root than that of the report's certificates",
    ),
}

NAMED: Final[dict[str, Named]] = {
    **_HEALTHY,
    **_ALTERED,
    **_COLLATERAL,
    **_REVOKED,
    **_TCB,
    **_TD,
    **_SNP,
}


def named_scenarios() -> tuple[str, ...]:
    """Return one line of help for each scenario."""
    width = max(map(len, NAMED))
    return tuple([f"{name:<{width}}  {named.text}" for name, named in NAMED.items()])


def scenario(name: str) -> Scenario:
    """Return the scenario called `name`.

    Raises:
        UsageError: There is none; the text has the nearest, and who lists all of them.
    """
    named = NAMED.get(name)
    if named is None:
        raise UsageError(
            f"no scenario is called {shown(name)}{near(name, NAMED)}; attestkit serve "
            "--list-scenarios has them all"
        )
    return named.scenario
