"""The report's table of TCB levels: what Intel wants of such a platform, and what this one has."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError
from attestkit.event_log.display import printable
from attestkit.quote import Quote, TdQuoteBody

if TYPE_CHECKING:
    from attestkit.verifier.dcap.tcb_info import PlatformLevel

__all__ = ["Level", "Svn", "TcbTable", "tcb_table"]

MOST: Final = 60  # levels shown, and advisories of one; Intel's lists have about twenty
_NOTE: Final = (
    "Intel's levels for this family of platforms, highest first. A platform is at the first level "
    "of which it has every security version number or a higher one; those that it lacks are "
    "underlined. A TDX module and the quoting enclave have levels of their own."
)


class Svn(NamedTuple):
    """One security version number; `short` where the platform has a lower one."""

    text: str
    short: bool = False


class Level(NamedTuple):
    """One row of the table."""

    css: str  # own: the platform itself; mine: the level it is at, ok if that is up to date
    date: str
    status: str
    components: tuple[tuple[Svn, ...], ...]  # a list a column
    pce: Svn
    advisories: tuple[str, ...]


class TcbTable(NamedTuple):
    """All levels, the platform's own numbers on top."""

    note: str
    columns: tuple[str, ...] = ()
    levels: tuple[Level, ...] = ()


class _Platform(NamedTuple):
    """What a platform has: a list of numbers for each column, and the PCE's."""

    components: tuple[bytes, ...]
    pce: int


def tcb_table(collateral: Collateral, evidence: Attestation | Quote) -> TcbTable | None:
    """Return the levels of the collateral's TCB info; None for evidence that is not Intel's."""
    from attestkit.verifier.dcap.tcb_info import read_tcb_info  # late: loads msgspec

    quote = evidence if isinstance(evidence, Quote) else evidence.quote
    if quote is None:
        return None
    try:
        info = read_tcb_info(collateral.tcb_info)
    except AttestKitError as error:
        return TcbTable(f"The TCB info cannot be read: {printable(str(error), 300)}")
    tdx = info.id == "TDX"
    columns = ("SGX components", "TDX components") if tdx else ("SGX components",)
    own = _platform(quote, collateral, tdx=tdx)
    note = _NOTE
    if own is None:
        note = f"{_NOTE} What this platform has cannot be read."
    if len(info.tcb_levels) > MOST:
        note = f"{note} {len(info.tcb_levels) - MOST} lower levels are not shown."
    rows = [_row(level, own, tdx=tdx) for level in info.tcb_levels[:MOST]]
    mine = next((i for i, row in enumerate(rows) if own is not None and _reached(row)), None)
    if mine is not None:
        current = " ok" if rows[mine].status == "UpToDate" else ""
        rows[mine] = rows[mine]._replace(css=f"mine{current}")
    if own is not None:
        rows.insert(0, _own_row(own))
    return TcbTable(note, columns, tuple(rows))


def _platform(quote: Quote, collateral: Collateral, *, tdx: bool) -> _Platform | None:
    """Return the numbers that the PCK certificate and the quote name, if they can be read."""
    from attestkit.verifier.dcap.pck_chain import chain_of, read_pck_chain

    body = quote.body
    try:
        platform = read_pck_chain(*chain_of(quote, collateral.pck_certificate_chain)).platform
    except AttestKitError:
        return None
    if not tdx:
        return _Platform((platform.components,), platform.pcesvn)
    if not isinstance(body, TdQuoteBody):
        return None
    return _Platform((platform.components, body.tee_tcb_svn), platform.pcesvn)


def _row(level: "PlatformLevel", own: _Platform | None, *, tdx: bool) -> Level:
    wanted = [[component.svn for component in level.tcb.sgx]]
    if tdx:
        wanted.append([component.svn for component in level.tcb.tdx])
    columns = []
    for index, svns in enumerate(wanted):
        columns.append(_column(svns, None if own is None else own.components[index]))
    pce = Svn(str(level.tcb.pcesvn), own is not None and own.pce < level.tcb.pcesvn)
    return Level(
        "",
        f"{level.tcb_date:%Y-%m-%d}",
        printable(level.tcb_status, 60),
        tuple(columns),
        pce,
        tuple(printable(name, 60) for name in level.advisory_ids[:MOST]),
    )


def _column(wanted: Sequence[int], has: bytes | None) -> tuple[Svn, ...]:
    return tuple(
        Svn(str(svn), has is not None and has[index] < svn) for index, svn in enumerate(wanted)
    )


def _reached(row: Level) -> bool:
    return not row.pce.short and not any(svn.short for column in row.components for svn in column)


def _own_row(own: _Platform) -> Level:
    columns = tuple(tuple(Svn(str(svn)) for svn in column) for column in own.components)
    return Level("own", "This platform", "", columns, Svn(str(own.pce)), ())
