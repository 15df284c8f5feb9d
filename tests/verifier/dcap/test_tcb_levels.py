"""Tests of TCB level reports: the component that is behind, its SVN, and the required SVN."""

from dataclasses import replace
from typing import Any

import pytest

from attestkit.backends.simulator.scenarios.config import QeIdentityConfig, TcbInfoConfig, TcbLevel
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError
from attestkit.quote import Quote
from attestkit.verifier.dcap.tcb_levels import shortfall, unsupported
from tests.raising import raises
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    PKI,
    RAW,
    authenticate,
    collateral,
    create_enclave_quote,
    create_td_quote,
    load_hardware_quote,
    remove_pck_chain,
    tcb_info,
)


def pad_svns(*values: int) -> bytes:
    """Return 16 SVNs, zero-padded."""
    return bytes(values).ljust(16, b"\0")


def create_tcb_info(**config: Any) -> Collateral:
    """Return collateral with this TCB info configuration."""
    return collateral(tcb_info=TcbInfoConfig(**config))


def describe_level(subject: str, date: str, status: str) -> str:
    """Return the report for a platform with no component behind."""
    return (
        f"no component is below its newest level; "
        f"that of {subject}, from {date}, is itself {status}"
    )


SGX_LATE = "OS/VMM: SGX Late Microcode Update"
TDX_LATE = "OS/VMM: TDX Late Microcode Update"
CPUSVN = bytearray(PKI.config.cpusvn)
CPUSVN[1] = 9


@pytest.mark.parametrize(
    ("endorsements", "raw", "status", "sentence"),
    [
        (
            create_tcb_info(sgx_components=bytes(CPUSVN)),
            RAW,
            None,
            f"SGX component 2 is 3, the level from 2024-11 needs 9 ({SGX_LATE})",
        ),
        (
            create_tcb_info(pcesvn=14),
            RAW,
            "OutOfDate",
            "PCESVN is 13, the level from 2024-11 needs 14",
        ),
        (
            create_tcb_info(tdx_components=pad_svns(5, 0, 4)),
            RAW,
            "OutOfDate",
            f"TDX component 3 is 3, the level from 2024-11 needs 4 ({TDX_LATE})",
        ),
        # With a TDX module version in component 2, components 1 and 2 have levels of their own.
        (
            create_tcb_info(tdx_components=pad_svns(9, 9, 4)),
            RAW,
            "OutOfDate",
            f"TDX component 3 is 3, the level from 2024-11 needs 4 ({TDX_LATE})",
        ),
        (
            create_tcb_info(tdx_components=pad_svns(5, 6, 3)),
            create_td_quote(tee_tcb_svn=pad_svns(5, 0, 3)),
            "OutOfDate",
            "TDX component 2 is 0, the level from 2024-11 needs 6 (OS/VMM: TDX Module)",
        ),
        (
            COLLATERAL,
            create_td_quote(tee_tcb_svn=pad_svns(5, 1, 3)),
            "OutOfDate",
            "TDX component 1 (module TDX_01) is 5, the level from 2024-11 needs 6",
        ),
        (
            COLLATERAL,
            create_td_quote(tee_tcb_svn=pad_svns(5, 1, 3), tee_tcb_svn2=pad_svns(7, 1, 3)),
            "TDRelaunchAdvised",
            "TDX component 1 (module TDX_01) is 5, the level from 2024-11 needs 6",
        ),
        (
            COLLATERAL,
            create_enclave_quote(qe_isvsvn=2),
            "OutOfDate",
            "the quoting enclave's SVN is 2, the level from 2024-11 needs 4",
        ),
        (
            create_tcb_info(status="OutOfDate"),
            RAW,
            "OutOfDate",
            describe_level("the platform", "2024-11", "OutOfDate (INTEL-SA-99999)"),
        ),
        (
            create_tcb_info(module_levels=(TcbLevel(6, "2026-05-01T00:00:00Z", "OutOfDate"),)),
            RAW,
            "OutOfDate",
            describe_level("the TDX module", "2026-05", "OutOfDate"),
        ),
        (
            collateral(
                qe_identity=QeIdentityConfig(
                    levels=(TcbLevel(4, "2026-05-01T00:00:00Z", "OutOfDate", ("A-1", "A-2")),)
                )
            ),
            RAW,
            "OutOfDate",
            describe_level("the quoting enclave", "2026-05", "OutOfDate (A-1, A-2)"),
        ),
        (
            COLLATERAL,
            RAW,
            "UpToDate",
            describe_level("the platform", "2024-11", "UpToDate"),
        ),
    ],
    ids=[
        *("sgx", "pcesvn", "tdx", "tdx-with-module", "tdx-2", "module", "relaunch", "qe"),
        *("platform-level", "module-level", "qe-level", "up-to-date"),
    ],
)
def test_shortfall_names_first_component_behind(
    endorsements: Collateral, raw: bytes, status: str | None, sentence: str
) -> None:
    """The report names the component, its SVN and the newest level's; dcap-qvl agrees."""
    assert shortfall(endorsements, Quote.parse(raw)) == sentence
    if status is not None:
        assert authenticate(raw, endorsements).status == status


def test_unsupported_reports_newest_and_oldest_level() -> None:
    """A component below the oldest level is reported with both levels."""
    low = create_td_quote(tee_tcb_svn=pad_svns(7, 1, 1))
    assert unsupported(COLLATERAL, Quote.parse(low)) == (
        "TDX component 3 is 1, the level from 2024-11 needs 3 (OS/VMM: TDX Late Microcode Update); "
        "it is below the oldest level too: TDX component 3 is 1, the level from 2018-01 needs 2 "
        "(OS/VMM: TDX Late Microcode Update)"
    )


@pytest.mark.parametrize("levels", [0, 1])
def test_unsupported_with_one_or_no_level(levels: int) -> None:
    """A single level is reported once, and an empty list is accepted."""
    endorsements = tcb_info(lambda body: body.update(tcbLevels=body["tcbLevels"][:levels]))
    low = Quote.parse(create_td_quote(tee_tcb_svn=pad_svns(7, 1, 1)))
    expected = [
        describe_level("the TDX module", "2024-11", "UpToDate"),
        "TDX component 3 is 1, the level from 2024-11 needs 3 (OS/VMM: TDX Late Microcode Update)",
    ]
    assert unsupported(endorsements, low) == expected[levels]
    assert shortfall(endorsements, low) == expected[levels]


@needs_shared
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "sgx_quote",
            "SGX component 7 is 0, the level from 2024-03 needs 12",
        ),
        (
            "tdx_quote",
            describe_level("the platform", "2024-03", "UpToDate"),
        ),
        (
            "tdx_quote_outdated",
            "SGX component 8 is 3, the level from 2024-11 needs 5 (OS/VMM: SEAMLDR ACM)",
        ),
    ],
)
def test_shortfall_of_hardware_quote(name: str, sentence: str) -> None:
    """Reports for Intel's hardware quotes are correct."""
    quote, endorsements = load_hardware_quote(name)
    assert shortfall(endorsements, quote).startswith(sentence)


def test_shortfall_reads_chain_from_collateral() -> None:
    """The SVNs of a quote without a chain are read from the collateral's chain."""
    endorsements = replace(
        create_tcb_info(pcesvn=14), pck_certificate_chain=PKI.platform().pck_chain
    )
    quote = Quote.parse(remove_pck_chain(RAW))
    assert shortfall(endorsements, quote) == "PCESVN is 13, the level from 2024-11 needs 14"
    with raises(CollateralError, "pck_chain_missing"):
        shortfall(create_tcb_info(pcesvn=14), quote)


def test_shortfall_malformed_input_raises_attestkit_error() -> None:
    """Malformed endorsements or certificates raise CollateralError or FormatError."""
    quote = Quote.parse(RAW)
    with raises(CollateralError, "tcb_info_malformed"):
        shortfall(replace(COLLATERAL, tcb_info="{}"), quote)
    with raises(CollateralError, "qe_identity_malformed"):
        shortfall(replace(COLLATERAL, qe_identity="[]"), quote)
    with raises(FormatError, "quote_format"):
        shortfall(COLLATERAL, Quote.parse(create_enclave_quote(certification=b"garbage")))
    nested = '{"tcbLevels":' + "[" * 100_000
    with raises(CollateralError, "tcb_info_malformed"):
        shortfall(replace(COLLATERAL, tcb_info=nested), quote)
