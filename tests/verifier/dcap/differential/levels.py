"""Random TCB levels and SVNs, and the form of such evidence that dcap-qvl reads as Intel does."""

from dataclasses import replace
from random import Random
from typing import Any, Final

from attestkit.verifier.dcap.tcb_info import ENCLAVE_STATUSES, PLATFORM_STATUSES
from tests.verifier.dcap.differential.forge import EXTENDED, SGX, TDX, Forge, Report, date

_PLATFORM_WORDS: Final = tuple(PLATFORM_STATUSES)
_UNREVOKED: Final = tuple(word for word in _PLATFORM_WORDS if word != "Revoked")
_PART_WORDS: Final = (*list(ENCLAVE_STATUSES)[:2] * 6, "Revoked")


def generate_levels(r: Random) -> Forge:
    """TCB levels and SVNs of platform, TDX module and quoting enclave, small so that they meet."""
    tee, version = r.choice(((TDX, 4), (TDX, 4), (TDX, 5), (TDX, 5), (SGX, 3), (SGX, 3), (SGX, 4)))
    forge = Forge(tee, version)
    components = tuple(_svns(r))
    cpusvn = bytes(components if r.random() < 0.95 else _svns(r))
    forge.sgx = replace(forge.sgx, components=components, cpusvn=cpusvn, pcesvn=r.randrange(3))
    levels = [_platform_level(r, tee) for _ in range(r.randrange(1, 6))]
    if r.random() < 0.8:
        levels.append(_platform_level(r, tee, reached=True))
    forge.tcb_info["tcbLevels"] = levels
    forge.qe_identity["tcbLevels"] = _part_levels(r)
    forge.qe = forge.qe._replace(isvsvn=r.randrange(4))
    if tee == TDX:
        _draw_modules(r, forge)
    if r.random() < 0.6:
        _sort_levels(forge)
    _vary_quote(r, forge)
    forge.altered |= _level_facts(forge)
    return forge


def _svns(r: Random) -> list[int]:
    return [r.choice((0, 1, 1, 2)) for _ in range(3)] + [0] * 12 + [r.choice((0, 0, 0, 1))]


def _platform_level(r: Random, tee: int, *, reached: bool = False) -> dict[str, Any]:
    """Return a level of the platform, or one that every platform reaches."""
    sgx, tdx = ([0] * 16 if reached else _svns(r) for _ in range(2))
    tcb: dict[str, Any] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in sgx],
        "pcesvn": 0 if reached else r.randrange(3),
    }
    if tee == TDX:
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in tdx]
    return {"tcb": tcb, **_level_end(r, _UNREVOKED if reached else _PLATFORM_WORDS)}


def _part_levels(r: Random) -> list[dict[str, Any]]:
    """Return levels of a TDX module or a quoting enclave, mostly with one that all reach."""
    svns = [r.randrange(4) for _ in range(r.choice((0, 1, 1, 2)))]
    svns.append(0 if r.random() < 0.8 else 1)
    return [{"tcb": {"isvsvn": svn}, **_level_end(r, _PART_WORDS)} for svn in svns]


def _level_end(r: Random, words: tuple[str, ...]) -> dict[str, Any]:
    day = r.randrange(1_500_000_000, 1_700_000_000, 86400)
    advisories = [f"INTEL-SA-{r.randrange(4)}" for _ in range(r.randrange(3))]
    end: dict[str, Any] = {"tcbDate": date(day), "tcbStatus": r.choice(words)}
    return end | ({"advisoryIDs": advisories} if advisories else {})


def _draw_modules(r: Random, forge: Forge) -> None:
    module = forge.tcb_info["tdxModule"]
    launch = _module_svns(r, r.choice((0, 1, 1, 1, 2, 10)))
    other = r.choice((launch[1], launch[1], 1, 2))
    current = r.choice((launch, _module_svns(r, other)))
    forge.td = forge.td._replace(tee_tcb_svn=launch, tee_tcb_svn2=current)
    versions = [r.choice((1, 2, 10, launch[1], current[1])) for _ in range(r.randrange(3))]
    if r.random() < 0.9:
        versions += [launch[1], *([current[1]] if current[1] != launch[1] else ())]
    forge.tcb_info["tdxModuleIdentities"] = [
        {
            "id": r.choice((f"TDX_{number:02X}", f"TDX_{number:02x}")),
            **module,
            "tcbLevels": _part_levels(r),
        }
        for number in versions or [1]
    ]


def _module_svns(r: Random, number: int) -> bytes:
    """Return a TEE_TCB_SVN with a version of the module."""
    head = bytes([r.randrange(4), number, r.choice((0, 1, 1, 2))])
    return head + bytes(12) + bytes([r.choice((0, 1))])


def _vary_quote(r: Random, forge: Forge) -> None:
    """Now and then, alter a field of the quote that both verifiers compare with something."""
    if r.random() < 0.05:
        forge.qe_auth_data = r.randbytes(r.choice((0, 1, 31, 33, 64, 1000)))
        forge.altered.add("QE authentication data")
    if r.random() < 0.02 and forge.has_current_tcb:
        forge.body_type = EXTENDED
        forge.altered.add("TD 1.5 extended")
    if r.random() < 0.05:
        attributes = _flipped(r, forge.td.td_attributes)
        forge.td = forge.td._replace(td_attributes=attributes)
    if r.random() < 0.02:
        forge.td = forge.td._replace(mr_service_td=r.randbytes(48))
    if r.random() < 0.02:
        name = r.choice(("mr_signer_seam", "seam_attributes"))
        forge.td = forge.td._replace(**{name: _flipped(r, getattr(forge.td, name))})
        forge.altered.add(f"quote {name}")
    if r.random() < 0.04:
        forge.enclave = _flipped_report(r, forge.enclave)
    if r.random() < 0.04:
        forge.qe = _flipped_report(r, forge.qe)


def _flipped_report(r: Random, report: Report) -> Report:
    name = r.choice(("miscselect", "attributes", "mrenclave", "mrsigner", "isvprodid"))
    value = getattr(report, name)
    fields: dict[str, Any] = {
        name: value ^ 1 << r.randrange(16) if isinstance(value, int) else _flipped(r, value)
    }
    return report._replace(**fields)


def _flipped(r: Random, data: bytes) -> bytes:
    at = r.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]


def _order(level: dict[str, Any]) -> tuple[int, str]:
    return level["tcb"]["isvsvn"], level["tcbDate"]


def _sort_levels(forge: Forge) -> None:
    """Sort the levels of modules and quoting enclave, highest first, each ISVSVN once."""
    modules = forge.tcb_info.get("tdxModuleIdentities", ())
    for holder in (forge.qe_identity, *modules):
        first: dict[int, dict[str, Any]] = {}
        for level in sorted(holder["tcbLevels"], key=_order, reverse=True):
            first.setdefault(level["tcb"]["isvsvn"], level)
        holder["tcbLevels"] = list(first.values())


def _level_facts(forge: Forge) -> set[str]:
    found = set()
    modules = forge.tcb_info.get("tdxModuleIdentities", ())
    parts = [("QE", forge.qe_identity["tcbLevels"])]
    parts += [("module", module["tcbLevels"]) for module in modules]
    for part, levels in parts:
        orders = [_order(level) for level in levels]
        svns = [svn for svn, _ in orders]
        if orders != sorted(orders, reverse=True):
            found.add(f"{part} levels unsorted")
        if len(set(orders)) < len(orders) or (part == "module" and len(set(svns)) < len(svns)):
            found.add(f"{part} level twice")
        elif len(set(svns)) < len(svns):
            found.add("QE levels of one ISVSVN")
    platform = [str(level["tcb"]) for level in forge.tcb_info["tcbLevels"]]
    if len(set(platform)) < len(platform):
        found.add("platform level twice")
    ids = [module["id"].upper() for module in modules]
    if len(set(ids)) < len(ids):
        found.add("module identity twice")
    return found | form_facts(forge)


def form_facts(forge: Forge) -> set[str]:
    """Return what is unusual in the form of quote and PCK certificate."""
    found = set()
    if forge.sgx.cpusvn != bytes(svn & 0xFF for svn in forge.sgx.components):
        found.add("CPUSVN is not the components")
    if forge.sgx.pcesvn > 0x7FFF:
        found.add("PCESVN over 32767")
    if forge.tee == SGX and forge.version > 3:
        found.add("SGX quote of version 4 or 5")
    return found


def normalized(forge: Forge) -> Forge:
    """Return evidence of the same meaning in the only form that dcap-qvl reads as Intel does."""
    forge = forge.copy()
    _sort_levels(forge)
    for module in forge.tcb_info.get("tdxModuleIdentities", ()):
        for level in module["tcbLevels"]:  # the SVN that it is compared with is a byte
            level["tcb"]["isvsvn"] = min(level["tcb"]["isvsvn"], 0xFF)
    if forge.tee == SGX:
        for level in forge.tcb_info["tcbLevels"]:
            level["tcb"].pop("tdxtcbcomponents", None)
    components = bytes(svn & 0xFF for svn in forge.sgx.components)
    pcesvn = min(forge.sgx.pcesvn, 0x7FFF)
    forge.sgx = replace(forge.sgx, cpusvn=components, pcesvn=pcesvn)
    forge.qe_auth_data = bytes(32)
    if forge.tee == SGX:
        forge.version = 3
    return forge
