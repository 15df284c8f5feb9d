"""docs/peers.md matches the behaviour of the installed packages."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.cli.bench import event_logs, quotes
from attestkit.errors import FormatError
from tests.untyped import untyped
from tests.vectors import data, needs_shared

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "peers.md"
AT: Final = 1_790_000_000
SEED: Final = bytes(32)
NONE: Final[Any] = SimpleNamespace()  # samples that are not used
MODULES: Final = {
    "dcap-qvl": "dcap_qvl",
    "dstack-sdk": "dstack_sdk",
    "cvm-attest": "cvm_attest",
    "dk-tee-attestation": "dk_tee_attestation",
    "evidence-api": "evidence_api",
    "cctrusted-vm": "cctrusted_vm",
}
OURS: Final = "attestkit"

pytestmark = [
    pytest.mark.slow,  # there are many peers, which import slowly
    pytest.mark.skipif(not PAGE.exists(), reason="docs/peers.md is not here"),
]


def _cells() -> dict[str, dict[str, str]]:
    """Return the table of executed checks: "yes", "no" or "-" by row and package."""
    text = PAGE.read_text().split("## What we ran")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [name.split()[0] for name in head[1:]]
    assert names == [OURS, *MODULES]
    return {
        row: dict(zip(names, [cell.split(" ")[0] for cell in cells], strict=True))
        for row, *cells in rows
    }


def _version_on_page(name: str) -> str:
    """Return the version of a package on the page."""
    found = re.search(
        rf"^\|[^|]*\b{name}\b[^|0-9]* ([0-9.]+) [^|]*\|", PAGE.read_text(), re.MULTILINE
    )
    assert found is not None
    return found[1]


def _quote(quote_version: int) -> attestkit.Quote:
    with Attester(Simulator(seed=SEED, quote_version=quote_version)) as tee:
        return tee.get_quote(b"nonce")


def _evidence_api_quote(data: bytes) -> tuple[Any, ...]:
    from evidence_api.tdx.quote import TdxQuote

    return (bytes(TdxQuote(data).body.rtmr3), None)


def _cctrusted_quote(data: bytes) -> tuple[Any, ...]:
    from cctrusted_base.tdx.quote import TdxQuote

    return (bytes(TdxQuote(data).body.rtmr3), None)


def _ours(data: bytes) -> tuple[Any, ...]:
    return (attestkit.Quote.parse(data).rtmrs[3], None)


READERS: Final[Mapping[str, Callable[[bytes], tuple[Any, ...]]]] = {
    OURS: _ours,
    "dcap-qvl": quotes.dcap_qvl(NONE),
    "cvm-attest": quotes.cvm_attest(NONE),
    "dk-tee-attestation": quotes.dk_tee_attestation(NONE),
    "evidence-api": _evidence_api_quote,
    "cctrusted-vm": _cctrusted_quote,
}
"""Return a quote's fields; RTMR3 is the last but one."""
# Exceptions of the packages for an unsupported quote.
UNSUPPORTED: Final = (AttributeError, LookupError, TypeError, ValueError, FormatError)


def _reads(name: str, quote_version: int) -> bool:
    """Return whether a package finds the RTMR3 of a quote."""
    quote = _quote(quote_version)
    refusals: tuple[type[Exception], ...] = UNSUPPORTED
    if name == "dk-tee-attestation":
        from dk_tee_attestation.AttestationExceptions import AttestationError

        refusals = (AttestationError,)
    try:
        found = READERS[name](quote.raw)[-2]
    except refusals:
        return False
    return (bytes.fromhex(found) if isinstance(found, str) else found) == quote.rtmrs[3]


def _verifies(name: str) -> bool:
    """Return whether a package accepts a valid quote, given root, collateral and time."""
    simulator = Simulator(seed=SEED, now=lambda: AT)
    root, collateral = simulator.trust_anchor, simulator.collateral(AT)
    with Attester(simulator) as tee:
        raw = tee.get_quote(b"nonce").raw
    if name == OURS:
        verifier = attestkit.Verifier(root, collateral)
        return verifier.verify(raw, report_data=b"nonce", now=AT).simulated
    dcap_qvl = importlib.import_module("dcap_qvl")  # ships no types
    theirs = dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json())
    return bool(dcap_qvl.verify_with_root_ca(raw, theirs, root, AT).status == "UpToDate")


def _reads_sgx(name: str) -> bool:
    """Return whether a package reads the quote of an SGX enclave."""
    quote = data("quotes/dcap-qvl/sgx_quote")
    if name == OURS:
        return attestkit.Quote.parse(quote).report_data == quote[368:432]
    dcap_qvl = importlib.import_module("dcap_qvl")
    return bool(dcap_qvl.parse_quote(quote).report.report_data == quote[368:432])


def _reads_snp(name: str) -> bool:
    """Return whether a package finds the report data in an SEV-SNP report."""
    raw = data("snp/go-sev-guest/attestation.bin")
    if name == OURS:
        return attestkit.SnpReport.parse(raw).report_data == raw[0x50:0x90]
    if name == "cvm-attest":
        from cvm_attest.snp.report import parse_snp_report

        return raw[0x50:0x90].hex() in str(parse_snp_report(raw))
    from dk_tee_attestation.amd_sev_snp_attestation_report_verification_utils import (
        tee_rust_py_wrap,
    )

    return bytes(tee_rust_py_wrap.parse_report(raw)["report_data"]) == raw[0x50:0x90]


def _replays_ccel(name: str) -> bool:
    """Return whether a package replays a captured CCEL to the same registers as attestkit."""
    area = data("ccel/go-eventlog/cos-113-intel-tdx.bin")
    ours = attestkit.EventLog.from_ccel(area).replay()
    if name == OURS:
        return any(any(register) for register in ours)
    peer = event_logs.evidence_api if name == "evidence-api" else event_logs.cctrusted_vm
    samples: Any = SimpleNamespace(ccel=area)
    call = peer(samples, replay=True)
    return event_logs.registers(untyped(call())) == tuple(ours)


def _replays_json(name: str) -> bool:
    """Return whether a package replays the guest agent's log to the quoted registers."""
    with Attester(Simulator(seed=SEED)) as tee:
        tee.emit_event("model-loaded", b"llama")
        quote, text = tee.get_quote(b"nonce"), tee.event_log().to_json()
    if name == OURS:
        return attestkit.EventLog.from_json(text).replay() == quote.rtmrs
    call = event_logs.dstack_sdk(text)
    return event_logs.registers(untyped(call())) == tuple(quote.rtmrs)


def _is_typed(name: str) -> bool:
    """Return whether a package is typed: it contains py.typed."""
    spec = importlib.util.find_spec(MODULES.get(name, name))
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "py.typed").exists()


PROBES: Final[Mapping[str, tuple[Callable[[str], bool], set[str]]]] = {
    "reads a TDX quote, version 4": (lambda name: _reads(name, 4), set(READERS)),
    "reads a TDX quote, version 5": (lambda name: _reads(name, 5), set(READERS)),
    "reads an SGX quote": (_reads_sgx, {OURS, "dcap-qvl"}),
    "reads an SEV-SNP report": (_reads_snp, {OURS, "cvm-attest", "dk-tee-attestation"}),
    "verifies a quote without a network": (_verifies, {OURS, "dcap-qvl"}),
    "replays a CCEL": (_replays_ccel, {OURS, "evidence-api", "cctrusted-vm"}),
    "replays the guest agent's log": (_replays_json, {OURS, "dstack-sdk"}),
    "declares its types": (_is_typed, {OURS, *MODULES}),
}
"""The check and the packages of each row; for other packages the page has "-"."""


@needs_shared
@pytest.mark.parametrize("row", PROBES)
def test_cell_matches_package(row: str) -> None:
    """A cell is "yes" if the check passes, "no" if it fails, "-" if it does not apply."""
    probe, asked = PROBES[row]
    for name, cell in _cells()[row].items():
        if name not in asked:
            assert cell == "-", name
            continue
        if name != OURS:
            pytest.importorskip(MODULES[name])
        assert cell == ("yes" if probe(name) else "no"), name


def test_every_row_has_a_check() -> None:
    """Every row of executed checks has a test."""
    assert list(_cells()) == list(PROBES)


@pytest.mark.parametrize("name", MODULES)
def test_versions_are_installed_ones(name: str) -> None:
    """The page's versions are the installed ones, as results hold for one release only."""
    pytest.importorskip(MODULES[name])
    assert version(name) == _version_on_page(name)
