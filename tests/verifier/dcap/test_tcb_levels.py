"""Tests of TCB level reports: the component that is behind, its SVN, and the required SVN."""

from dataclasses import replace

import pytest

from attestkit.backends.simulator.scenarios.config import TcbLevel
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError
from attestkit.quote import Quote
from attestkit.verifier.dcap.engine import Dcap
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    DCAP,
    PKI,
    RAW,
    authenticate,
    create_enclave_quote,
    create_qe_identity,
    create_tcb_info,
    create_td_quote,
    get_rejection,
    load_hardware_quote,
    remove_pck_chain,
    tcb_info,
)


def pad_svns(*values: int) -> bytes:
    """Return 16 SVNs, zero-padded."""
    return bytes(values).ljust(16, b"\0")


def describe_level(subject: str, date: str, status: str) -> str:
    """Return the report for a platform with no component behind."""
    return (
        f"no component is below its newest level; "
        f"that of {subject}, from {date}, is itself {status}"
    )


def describe_shortfall(component: str, svn: int, needed: int, update: str = "") -> str:
    """Return the report for a component behind, with the update that raises its SVN."""
    return f"{component} is {svn}, the level from 2024-11 needs {needed}{update}"


SGX_LATE = " (OS/VMM: SGX Late Microcode Update)"
TDX_LATE = " (OS/VMM: TDX Late Microcode Update)"
TDX_MODULE = " (OS/VMM: TDX Module)"
CPUSVN = bytearray(PKI.config.cpusvn)
CPUSVN[1] = 9
LATE_MODULE = create_tcb_info(module_levels=(TcbLevel(6, "2026-05-01T00:00:00Z", "OutOfDate"),))
LATE_QE = create_qe_identity(
    levels=(TcbLevel(4, "2026-05-01T00:00:00Z", "OutOfDate", ("A-1", "A-2")),)
)
OLD_MODULE, NEW_MODULE = pad_svns(5, 1, 3), pad_svns(7, 1, 3)
COMPONENT_3 = describe_shortfall("TDX component 3", 3, 4, TDX_LATE)
MODULE = describe_shortfall("TDX component 1 (module TDX_01)", 5, 6)
OLD_PLATFORM = describe_level("the platform", "2024-11", "OutOfDate (INTEL-SA-99999)")


@every_case(
    ("endorsements", "fields", "report", "status"),
    [
        (create_tcb_info(pcesvn=14), {}, describe_shortfall("PCESVN", 13, 14), "OutOfDate"),
        (create_tcb_info(tdx_components=pad_svns(5, 0, 4)), {}, COMPONENT_3, "OutOfDate"),
        # With a TDX module version in component 2, components 1 and 2 have levels of their own.
        (create_tcb_info(tdx_components=pad_svns(9, 9, 4)), {}, COMPONENT_3, "OutOfDate"),
        (
            create_tcb_info(tdx_components=pad_svns(5, 6, 3)),
            {"tee_tcb_svn": pad_svns(5, 0, 3)},
            describe_shortfall("TDX component 2", 0, 6, TDX_MODULE),
            "OutOfDate",
        ),
        (COLLATERAL, {"tee_tcb_svn": OLD_MODULE}, MODULE, "OutOfDate"),
        (
            COLLATERAL,
            {"tee_tcb_svn": OLD_MODULE, "tee_tcb_svn2": NEW_MODULE},
            MODULE,
            "TDRelaunchAdvised",
        ),
        (create_tcb_info(status="OutOfDate"), {}, OLD_PLATFORM, "OutOfDate"),
        (LATE_MODULE, {}, describe_level("the TDX module", "2026-05", "OutOfDate"), "OutOfDate"),
        (
            LATE_QE,
            {},
            describe_level("the quoting enclave", "2026-05", "OutOfDate (A-1, A-2)"),
            "OutOfDate",
        ),
        (COLLATERAL, {}, describe_level("the platform", "2024-11", "UpToDate"), "UpToDate"),
    ],
)
def test_shortfall_names_first_component_behind(
    endorsements: Collateral, fields: dict[str, bytes], report: str, status: str
) -> None:
    """The report names the component, its SVN and the newest level's."""
    raw = create_td_quote(**fields)
    assert DCAP.explain(Quote.parse(raw), endorsements) == report
    assert authenticate(raw, endorsements).status == status


def test_shortfall_of_sgx_component_and_qe() -> None:
    """SGX components and the quoting enclave are reported alike."""
    found = DCAP.explain(Quote.parse(RAW), create_tcb_info(sgx_components=bytes(CPUSVN)))
    assert found == describe_shortfall("SGX component 2", 3, 9, SGX_LATE)
    found = DCAP.explain(Quote.parse(create_enclave_quote(qe_isvsvn=2)), COLLATERAL)
    assert found == describe_shortfall("the quoting enclave's SVN", 2, 4)


def test_unsupported_reports_newest_and_oldest_level() -> None:
    """A component below the oldest level is reported with both levels."""
    low = create_td_quote(tee_tcb_svn=pad_svns(7, 1, 1))
    error = get_rejection(low)
    assert error.reason == "tcb_not_supported"
    assert (
        "TDX component 3 is 1, the level from 2024-11 needs 3 (OS/VMM: TDX Late Microcode Update); "
        "it is below the oldest level too: TDX component 3 is 1, the level from 2018-01 needs 2 "
        "(OS/VMM: TDX Late Microcode Update)"
    ) in str(error)


def test_unsupported_with_one_level_reports_it_once() -> None:
    """A single level is reported once."""
    endorsements = tcb_info(lambda body: body.update(tcbLevels=body["tcbLevels"][:1]))
    low = create_td_quote(tee_tcb_svn=pad_svns(7, 1, 1))
    error = get_rejection(low, endorsements)
    assert str(error).count(describe_shortfall("TDX component 3", 1, 3, TDX_LATE)) == 1
    assert "oldest" not in str(error)


@needs_shared
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sgx_quote", "SGX component 7 is 0, the level from 2024-03 needs 12"),
        ("tdx_quote", describe_level("the platform", "2024-03", "UpToDate")),
        ("tdx_quote_outdated", "SGX component 8 is 3, the level from 2024-11 needs 5"),
    ],
)
def test_shortfall_of_hardware_quote(name: str, sentence: str) -> None:
    """Reports for Intel's hardware quotes are correct."""
    quote, endorsements = load_hardware_quote(name)
    assert Dcap().explain(quote, endorsements).startswith(sentence)


def test_shortfall_reads_chain_from_collateral() -> None:
    """The SVNs of a quote without a chain are read from the collateral's chain."""
    endorsements = replace(
        create_tcb_info(pcesvn=14), pck_certificate_chain=PKI.platform().pck_chain
    )
    quote = Quote.parse(remove_pck_chain(RAW))
    assert DCAP.explain(quote, endorsements) == "PCESVN is 13, the level from 2024-11 needs 14"
    with raises(CollateralError, "pck_chain_missing"):
        DCAP.explain(quote, create_tcb_info(pcesvn=14))
