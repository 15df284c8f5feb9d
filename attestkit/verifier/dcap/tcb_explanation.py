"""Error texts on outdated components: their SVNs, and the SVNs that TCB levels need."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import NamedTuple

from attestkit._crypto.x509.sgx_extension import PckExtension
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.dcap.tcb_info import Component, PlatformLevel, SvnLevel, TcbInfo

_SHOWN = 200  # characters of advisories


def shown_advisories(advisory_ids: tuple[str, ...]) -> str:
    """Return advisories for a text: signed, but cut and without characters other than ASCII."""
    return ascii(", ".join(advisory_ids)[:_SHOWN])[1:-1]


class _OutdatedComponent(NamedTuple):
    """Component below a TCB level."""

    name: str
    svn: int
    needed: int
    date: int  # of the level
    label: str = ""

    def __str__(self) -> str:
        label = f" ({self.label})" if self.label else ""
        return (
            f"{self.name} is {self.svn}, the level from {_month(self.date)} needs {self.needed}"
            f"{label}"
        )


def explain_below_all(info: TcbInfo, platform: PckExtension, svns: bytes) -> str:
    """Return the text for a platform that is below all of `info.levels`.

    `svns` are the 16 SVNs of a TD; empty for SGX.
    """
    newest = _first_below(info.levels[0], info, platform, svns)
    oldest = _first_below(info.levels[-1], info, platform, svns)
    text = f"the platform is below every TCB level: {newest or oldest}"
    if newest is not None and oldest is not None and len(info.levels) > 1:
        text += f"; it is below the oldest level too: {oldest}"
    return f"{text}; update the platform's firmware"


def below_svn_levels(levels: tuple[SvnLevel, ...], svn: int, part: str) -> str:
    """Return the text for a TDX module or a quoting enclave that is below all of its levels."""
    newest = _OutdatedComponent(part, svn, levels[0].isvsvn, levels[0].date)
    return f"a component is below all of its TCB levels: {newest}; update it"


def explain_revoked(levels: Mapping[str, PlatformLevel | SvnLevel]) -> str:
    """Return the text for a revoked TCB; `levels` by the name of the platform's part."""
    part, level = next(
        (part, level) for part, level in levels.items() if level.status is TcbStatus.REVOKED
    )
    advisories = f" ({shown_advisories(level.advisory_ids)})" if level.advisory_ids else ""
    return (
        f"Intel has revoked the TCB level of {part}, from {_month(level.date)}{advisories}, and no "
        "policy accepts it; update the platform's firmware"
    )


def explain_status(
    info: TcbInfo,
    enclave: tuple[SvnLevel, ...],
    platform: PckExtension,
    svns: tuple[bytes, ...],
    qe_svn: int,
) -> str:
    """Return a sentence on the first component that is below its newest level.

    If no component is, the sentence gives the status of the newest level.

    Args:
        info: TCB info.
        enclave: Levels of QE identity.
        platform: Content of the PCK certificate.
        svns: SVNs of a TD, 16 bytes each: at launch, and current ones in TDX 1.5; none for SGX.
        qe_svn: ISVSVN of the quoting enclave.
    """
    newest: list[tuple[str, PlatformLevel | SvnLevel]] = [("the platform", info.levels[0])]
    outdated = [_first_below(info.levels[0], info, platform, given) for given in svns or (b"",)]
    for given in svns:
        name = f"TDX_{given[1]:02X}"
        module = info.modules.get(name) if given[1] else None
        if module is not None:
            newest.append(("the TDX module", module.levels[0]))
            outdated.append(_below(f"TDX component 1 (module {name})", given[0], module.levels))
    newest.append(("the quoting enclave", enclave[0]))
    outdated.append(_below("the quoting enclave's SVN", qe_svn, enclave))
    for component in outdated:
        if component is not None:
            return str(component)
    return _newest_level_sentence(newest)


def _first_below(
    level: PlatformLevel, info: TcbInfo, platform: PckExtension, svns: bytes
) -> _OutdatedComponent | None:
    """Return the first component of the platform that is below a level; None if none is."""
    for name, svn, needed, component in _compared(level, info, platform, svns):
        if svn < needed:
            label = "" if component is None else component.label
            return _OutdatedComponent(name, svn, needed, level.date, label)
    return None


def _compared(
    level: PlatformLevel, info: TcbInfo, platform: PckExtension, svns: bytes
) -> Iterator[tuple[str, int, int, Component | None]]:
    """Yield name, SVN, needed SVN and description of each component, in the order of comparison."""
    for n, svn in enumerate(platform.components):
        yield f"SGX component {n + 1}", svn, level.sgx[n], info.sgx_components[n]
    yield "PCESVN", platform.pcesvn, level.pcesvn, None
    # The first two components of a TDX module with a version are compared with its own levels.
    for n in range(2 if svns and svns[1] else 0, len(svns)):
        yield f"TDX component {n + 1}", svns[n], level.tdx[n], info.tdx_components[n]


def _below(part: str, svn: int, levels: tuple[SvnLevel, ...]) -> _OutdatedComponent | None:
    if svn < levels[0].isvsvn:
        return _OutdatedComponent(part, svn, levels[0].isvsvn, levels[0].date)
    return None


def _newest_level_sentence(newest: list[tuple[str, PlatformLevel | SvnLevel]]) -> str:
    behind = [(name, level) for name, level in newest if level.status is not TcbStatus.UP_TO_DATE]
    name, level = (behind or newest)[0]
    advisories = f" ({shown_advisories(level.advisory_ids)})" if level.advisory_ids else ""
    return (
        f"no component is below its newest level; that of {name}, from {_month(level.date)}, is "
        f"itself {level.status.value}{advisories}"
    )


def _month(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m}"
