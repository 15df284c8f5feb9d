"""A platform that is behind learns which component is, and what it needs."""

from dataclasses import replace
from typing import Any

import pytest

from attestkit.backends.simulator.scenarios.config import QeIdentityConfig, TcbInfoConfig, TcbLevel
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError
from attestkit.quote import Quote
from attestkit.verifier.dcap.tcb_levels import shortfall, unsupported
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    PKI,
    RAW,
    authenticate,
    collateral,
    enclave,
    real,
    tcb_info,
    td,
    without_chain,
)


def svns(*values: int) -> bytes:
    """Return 16 SVNs, the last ones zero."""
    return bytes(values).ljust(16, b"\0")


def info(**config: Any) -> Collateral:
    """Return collateral with such TCB info."""
    return collateral(tcb_info=TcbInfoConfig(**config))


def itself(what: str, date: str, status: str) -> str:
    """Return the sentence of a platform that is nowhere behind."""
    return (
        f"no component is below its newest level; that of {what}, from {date}, is itself {status}"
    )


SGX_LATE = "OS/VMM: SGX Late Microcode Update"
TDX_LATE = "OS/VMM: TDX Late Microcode Update"
WANTED = bytearray(PKI.config.cpusvn)
WANTED[1] = 9


@pytest.mark.parametrize(
    ("given", "raw", "status", "sentence"),
    [
        (
            info(sgx_components=bytes(WANTED)),
            RAW,
            None,
            f"SGX component 2 is 3, the level from 2024-11 needs 9 ({SGX_LATE})",
        ),
        (info(pcesvn=14), RAW, "OutOfDate", "PCESVN is 13, the level from 2024-11 needs 14"),
        (
            info(tdx_components=svns(5, 0, 4)),
            RAW,
            "OutOfDate",
            f"TDX component 3 is 3, the level from 2024-11 needs 4 ({TDX_LATE})",
        ),
        # With a module version, which is component 2, the first two have levels of their own.
        (
            info(tdx_components=svns(9, 9, 4)),
            RAW,
            "OutOfDate",
            f"TDX component 3 is 3, the level from 2024-11 needs 4 ({TDX_LATE})",
        ),
        (
            info(tdx_components=svns(5, 6, 3)),
            td(tee_tcb_svn=svns(5, 0, 3)),
            "OutOfDate",
            "TDX component 2 is 0, the level from 2024-11 needs 6 (OS/VMM: TDX Module)",
        ),
        (
            COLLATERAL,
            td(tee_tcb_svn=svns(5, 1, 3)),
            "OutOfDate",
            "TDX component 1 (module TDX_01) is 5, the level from 2024-11 needs 6",
        ),
        (
            COLLATERAL,
            td(tee_tcb_svn=svns(5, 1, 3), tee_tcb_svn2=svns(7, 1, 3)),
            "TDRelaunchAdvised",
            "TDX component 1 (module TDX_01) is 5, the level from 2024-11 needs 6",
        ),
        (
            COLLATERAL,
            enclave(qe_isvsvn=2),
            "OutOfDate",
            "the quoting enclave's SVN is 2, the level from 2024-11 needs 4",
        ),
        (
            info(status="OutOfDate"),
            RAW,
            "OutOfDate",
            itself("the platform", "2024-11", "OutOfDate (INTEL-SA-99999)"),
        ),
        (
            info(module_levels=(TcbLevel(6, "2026-05-01T00:00:00Z", "OutOfDate"),)),
            RAW,
            "OutOfDate",
            itself("the TDX module", "2026-05", "OutOfDate"),
        ),
        (
            collateral(
                qe_identity=QeIdentityConfig(
                    levels=(TcbLevel(4, "2026-05-01T00:00:00Z", "OutOfDate", ("A-1", "A-2")),)
                )
            ),
            RAW,
            "OutOfDate",
            itself("the quoting enclave", "2026-05", "OutOfDate (A-1, A-2)"),
        ),
        (
            COLLATERAL,
            RAW,
            "UpToDate",
            itself("the platform", "2024-11", "UpToDate"),
        ),
    ],
    ids=[
        *("sgx", "pcesvn", "tdx", "tdx-with-module", "tdx-2", "module", "relaunch", "qe"),
        *("platform-level", "module-level", "qe-level", "up-to-date"),
    ],
)
def test_the_first_component_behind(
    given: Collateral, raw: bytes, status: str | None, sentence: str
) -> None:
    """The sentence names the component, its SVN, and the newest level's; dcap-qvl agrees."""
    assert shortfall(given, Quote.parse(raw)) == sentence
    if status is not None:
        assert authenticate(raw, given).status == status


def test_below_every_level() -> None:
    """What is below the oldest level too is told with both levels."""
    low = td(tee_tcb_svn=svns(7, 1, 1))
    assert unsupported(COLLATERAL, Quote.parse(low)) == (
        "TDX component 3 is 1, the level from 2024-11 needs 3 (OS/VMM: TDX Late Microcode Update); "
        "it is below the oldest level too: TDX component 3 is 1, the level from 2018-01 needs 2 "
        "(OS/VMM: TDX Late Microcode Update)"
    )


@pytest.mark.parametrize("kept", [0, 1])
def test_few_levels(kept: int) -> None:
    """One level is told once, and none is no fault of the reader."""
    given = tcb_info(lambda body: body.update(tcbLevels=body["tcbLevels"][:kept]))
    low = Quote.parse(td(tee_tcb_svn=svns(7, 1, 1)))
    expected = [
        itself("the TDX module", "2024-11", "UpToDate"),
        "TDX component 3 is 1, the level from 2024-11 needs 3 (OS/VMM: TDX Late Microcode Update)",
    ]
    assert unsupported(given, low) == expected[kept]
    assert shortfall(given, low) == expected[kept]


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
            itself("the platform", "2024-03", "UpToDate"),
        ),
        (
            "tdx_quote_outdated",
            "SGX component 8 is 3, the level from 2024-11 needs 5 (OS/VMM: SEAMLDR ACM)",
        ),
    ],
)
def test_hardware(name: str, sentence: str) -> None:
    """Of Intel's quotes the sentences are right too."""
    quote, given = real(name)
    assert shortfall(given, quote).startswith(sentence)


def test_the_chain_may_be_the_collaterals() -> None:
    """The SVNs of a quote without a chain come from the collateral's."""
    given = replace(info(pcesvn=14), pck_certificate_chain=PKI.platform().pck_chain)
    quote = Quote.parse(without_chain(RAW))
    assert shortfall(given, quote) == "PCESVN is 13, the level from 2024-11 needs 14"
    with pytest.raises(CollateralError, match="no pck_certificate_chain"):
        shortfall(info(pcesvn=14), quote)


def test_what_cannot_be_read() -> None:
    """Malformed endorsements and certificates are errors of ours."""
    quote = Quote.parse(RAW)
    with pytest.raises(CollateralError, match="TCB info is malformed"):
        shortfall(replace(COLLATERAL, tcb_info="{}"), quote)
    with pytest.raises(CollateralError, match="QE identity is malformed"):
        shortfall(replace(COLLATERAL, qe_identity="[]"), quote)
    with pytest.raises(FormatError, match="PCK certificate chain"):
        shortfall(COLLATERAL, Quote.parse(enclave(certification=b"garbage")))
    nested = '{"tcbLevels":' + "[" * 100_000
    with pytest.raises(CollateralError, match="TCB info is malformed"):
        shortfall(replace(COLLATERAL, tcb_info=nested), quote)
