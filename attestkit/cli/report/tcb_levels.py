"""The table of TCB levels in the report: Intel's levels, and the SVNs of the platform."""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError
from attestkit.quote import Quote, TdQuoteBody

if TYPE_CHECKING:
    from attestkit.verifier.dcap.tcb_info import PlatformLevel

MOST: Final = 60  # maximum number of levels, and of advisories per level; Intel lists about 20
_NOTE: Final = (
    "Intel's TCB levels for this FMSPC, highest first. A platform is at the first level where all "
    "of its security version numbers (SVNs) are at least those of the level; lower ones are "
    "underlined. The TDX module and the quoting enclave have separate levels."
)


# A security version number, and whether that of the platform is lower.
Svn: TypeAlias = tuple[int, bool]


class TcbLevelRow(NamedTuple):
    """One row of the table."""

    css: str  # own: the platform; mine: its level, with ok if up to date
    date: str
    status: str
    components: tuple[tuple[Svn, ...], ...]  # one per column
    pce: Svn
    advisories: Sequence[str]


class TcbTable(NamedTuple):
    """The row of the platform, if its SVNs are readable, followed by Intel's TCB levels."""

    note: str
    columns: tuple[str, ...] = ()
    levels: tuple[TcbLevelRow, ...] = ()


class _Platform(NamedTuple):
    """The SVNs of a platform: one list per column, and the PCE SVN."""

    components: tuple[bytes, ...]
    pce: int


def tcb_table(collateral: Collateral, evidence: Attestation | Quote) -> TcbTable | None:
    """Return the levels of the collateral's TCB info; None for evidence without a quote."""
    from attestkit.verifier.dcap.tcb_info import read_tcb_info  # lazy: loads msgspec

    quote = evidence if isinstance(evidence, Quote) else evidence.quote
    if quote is None:
        return None
    try:
        info = read_tcb_info(collateral.tcb_info)
    except AttestKitError as error:
        return TcbTable(f"The TCB info is unreadable: {error}")
    tdx = bool(info.tee_type)
    columns = ("SGX components", "TDX components") if tdx else ("SGX components",)
    own = _platform(quote, collateral, tdx=tdx)
    note = _NOTE
    if own is None:
        note = f"{_NOTE} The SVNs of this platform are unreadable."
    if len(info.levels) > MOST:
        note = f"{note} {len(info.levels) - MOST} lower levels are not shown."
    rows = [_row(level, own, tdx=tdx) for level in info.levels[:MOST]]
    reached = next((i for i, row in enumerate(rows) if own is not None and _reached(row)), None)
    if reached is not None:
        current = " ok" if rows[reached].status == "UpToDate" else ""
        rows[reached] = rows[reached]._replace(css=f"mine{current}")
    if own is not None:
        rows.insert(0, _own_row(own))
    return TcbTable(note, columns, tuple(rows))


def _platform(quote: Quote, collateral: Collateral, *, tdx: bool) -> _Platform | None:
    """Return the SVNs of the PCK certificate and the quote, or None if unreadable."""
    from attestkit._crypto.x509.pem_chain import split_chain  # lazy: loads X.509
    from attestkit._crypto.x509.sgx_extension import read_sgx_extension

    body = quote.body
    try:
        chain = quote.pck_chain
        if not chain:
            text = collateral.pck_certificate_chain or ""
            chain = split_chain(text.encode("utf-8", "replace"), 0)
        platform = read_sgx_extension(chain[0])
    except AttestKitError:
        return None
    if not tdx:
        return _Platform((platform.components,), platform.pcesvn)
    if not isinstance(body, TdQuoteBody):
        return None
    return _Platform((platform.components, body.tee_tcb_svn), platform.pcesvn)


def _row(level: "PlatformLevel", own: _Platform | None, *, tdx: bool) -> TcbLevelRow:
    required = [level.sgx, level.tdx] if tdx else [level.sgx]
    columns = []
    for index, svns in enumerate(required):
        columns.append(_column(svns, None if own is None else own.components[index]))
    pce = (level.pcesvn, own is not None and own.pce < level.pcesvn)
    return TcbLevelRow(
        "",
        f"{datetime.fromtimestamp(level.date, timezone.utc):%Y-%m-%d}",
        level.status.value,
        tuple(columns),
        pce,
        level.advisory_ids[:MOST],
    )


def _column(required: Sequence[int], own: bytes | None) -> tuple[Svn, ...]:
    return tuple((svn, own is not None and own[n] < svn) for n, svn in enumerate(required))


def _reached(row: TcbLevelRow) -> bool:
    return not row.pce[1] and not any(short for column in row.components for _, short in column)


def _own_row(own: _Platform) -> TcbLevelRow:
    columns = tuple(_column(column, None) for column in own.components)
    return TcbLevelRow("own", "This platform", "", columns, (own.pce, False), ())
