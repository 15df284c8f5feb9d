"""The endorsements in the report: certificate chain, and validity of each part of collateral.

The table of TCB levels has Intel's levels, and the SVNs of the platform.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from attestkit._crypto.pem import split_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import AzureSnp, GcpSnp, SevSnp
from attestkit.cli.output.certificate_text import name_text, read_certificate_text
from attestkit.collateral import Collateral
from attestkit.collateral.intel_collateral import part_window
from attestkit.errors import AttestKitError
from attestkit.quote import Quote, TdQuoteBody

if TYPE_CHECKING:
    from attestkit.verifier.dcap.tcb_info import PlatformLevel

MOST: Final = 8  # certificates shown of a chain
_PARTS: Final = {
    "tcb_info": "TCB info",
    "qe_identity": "QE identity",
    "pck_crl": "CRL of the PCK CA",
    "root_ca_crl": "CRL of the root",
    "pck_crl_issuer_chain": "Chain of the PCK CA",
    "tcb_info_issuer_chain": "Chain of the TCB signer",
    "qe_identity_issuer_chain": "Chain of the QE identity's signer",
}


State: TypeAlias = tuple[str, str]  # CSS class and text


def format_minute(moment: datetime) -> str:
    """Format a time, which must be in UTC, as `2026-01-31 23:59`."""
    return moment.strftime("%Y-%m-%d %H:%M")


def _state(start: datetime, end: datetime, at: datetime) -> State:
    if at < start:
        return "no", "not yet valid"
    return ("no", "expired") if at > end else ("ok", "valid")


def presented_chain(evidence: Attestation | Quote) -> tuple[bytes, ...]:
    """Return the unverified certificates in evidence: the PCK chain in DER, or those of AMD.

    The latter are DER, or other data of the evidence that are not PEM. Empty without certificates,
    or if the PCK chain is unreadable.
    """
    try:
        quote = evidence if isinstance(evidence, Quote) else evidence.quote
        if quote is not None:
            return quote.pck_chain
    except AttestKitError:
        return ()
    assert isinstance(evidence, Attestation)
    platform = evidence.evidence.platform
    if not isinstance(platform, (SevSnp, GcpSnp, AzureSnp)):
        return ()
    found: list[bytes] = []
    for item in platform.cert_chain:
        try:
            found.extend(split_pem(item.decode("ascii")) if item[:1] == b"-" else [item])
        except (AttestKitError, UnicodeDecodeError):  # skip anything but certificates
            continue
    return tuple(found)


def describe_chain(
    certificates: Sequence[bytes], at: datetime
) -> list[tuple[str, State, dict[str, str]]]:
    """Return title, state and fields of certificates in DER, in their order.

    Certificates after the eighth, and unreadable ones, are skipped. The state is a CSS class and
    text, at the verification time `at`; fields are texts by title.
    """
    described = []
    for der in certificates[:MOST]:
        try:
            found = read_certificate_text(der)
        except AttestKitError:
            continue
        subject, issuer = name_text(found.subject), name_text(found.issuer)
        rows = {
            "Subject": subject,
            "Issuer": "itself" if subject == issuer else issuer,
            "Valid": f"{format_minute(found.valid_from)} to {format_minute(found.valid_until)}",
            "Serial number": found.serial_number,
            "Key (SHA-256)": found.key_id,
        }
        state = _state(found.valid_from, found.valid_until, at)
        described.append((found.common_name, state, rows))
    return described


def describe_parts(collateral: Collateral, at: datetime) -> list[tuple[str, str, str, State]]:
    """Return name, start and end (as text), and state of each part of collateral.

    The state is a CSS class and text, at the verification time `at`.
    """
    found = []
    for field, name in _PARTS.items():
        try:
            start, end = part_window(field, getattr(collateral, field))
        except AttestKitError:
            found.append((name, "", "", ("no", "unreadable")))
            continue
        state = _state(start, end, at)
        found.append((name, format_minute(start), format_minute(end), state))
    return found


MOST_LEVELS: Final = (
    60  # maximum number of levels, and of advisories per level; Intel lists about 20
)
_NOTE: Final = (
    "Intel's TCB levels for this FMSPC, highest first. A platform is at the first level where all "
    "of its security version numbers (SVNs) are at least those of the level; lower ones are "
    "underlined. The TDX module and the quoting enclave have separate levels; if the second TDX "
    "component is not 0, the first two are those of the module, and are not compared here."
)


# A security version number, and whether that of the platform is lower.
Svn: TypeAlias = tuple[int, bool]


class TcbLevelRow(NamedTuple):
    """A TCB level, or the platform itself, in the table of TCB levels.

    Attributes:
        css: CSS class: `own`: the platform; `mine`: its level, with `ok` if up to date; else empty.
        date: Date of the level; empty for the platform.
        status: TCB status, such as `UpToDate`.
        components: SVNs, one list for each column of the table, each with whether the platform's
            is lower.
        pce: PCE SVN, likewise.
        advisories: Ids of Intel's advisories.
    """

    css: str  # own: the platform; mine: its level, with ok if up to date
    date: str
    status: str
    components: tuple[tuple[Svn, ...], ...]  # one per column
    pce: Svn
    advisories: Sequence[str]


class TcbTable(NamedTuple):
    """The row of the platform, if its SVNs are readable, followed by Intel's TCB levels.

    `note` is the text above the table; `columns` are the titles of lists of SVNs.
    """

    note: str
    columns: tuple[str, ...] = ()
    levels: tuple[TcbLevelRow, ...] = ()


class _Platform(NamedTuple):
    """The SVNs of a platform: for each column of the table a byte per SVN, and the PCE SVN."""

    components: tuple[bytes, ...]
    pce: int


def tcb_table(collateral: Collateral, evidence: Attestation | Quote) -> TcbTable | None:
    """Return the table of TCB levels in the collateral's TCB info; None without a quote.

    If the TCB info is malformed, the table has no levels, and the error in its note.
    """
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
    if len(info.levels) > MOST_LEVELS:
        note = f"{note} {len(info.levels) - MOST_LEVELS} lower levels are not shown."
    rows = [_row(level, own, tdx=tdx) for level in info.levels[:MOST_LEVELS]]
    reached = next((i for i, row in enumerate(rows) if own is not None and _reached(row)), None)
    if reached is not None:
        current = " ok" if rows[reached].status == "UpToDate" else ""
        rows[reached] = rows[reached]._replace(css=f"mine{current}")
    if own is not None:
        svns = tuple(_column(column, None) for column in own.components)
        rows.insert(0, TcbLevelRow("own", "This platform", "", svns, (own.pce, False), ()))
    return TcbTable(note, columns, tuple(rows))


def _platform(quote: Quote, collateral: Collateral, *, tdx: bool) -> _Platform | None:
    """Return the SVNs of the PCK certificate and the quote, or None if unreadable.

    With `tdx`, there is a second column: TEE_TCB_SVN of the TD.
    """
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
        found = None if own is None else own.components[index]
        # The first two components of a TDX module with a version are compared with its own levels.
        start = 2 if index and found and found[1] else 0
        columns.append(_column(svns, found, start))
    pce = (level.pcesvn, own is not None and own.pce < level.pcesvn)
    return TcbLevelRow(
        "",
        f"{datetime.fromtimestamp(level.date, timezone.utc):%Y-%m-%d}",
        level.status.value,
        tuple(columns),
        pce,
        level.advisory_ids[:MOST_LEVELS],
    )


def _column(required: Sequence[int], own: bytes | None, start: int = 0) -> tuple[Svn, ...]:
    return tuple(
        (svn, own is not None and n >= start and own[n] < svn) for n, svn in enumerate(required)
    )


def _reached(row: TcbLevelRow) -> bool:
    return not row.pce[1] and not any(short for column in row.components for _, short in column)
