"""`attestkit report`: a self-contained page for accepted and rejected evidence."""

import json
import re
from base64 import b64encode
from datetime import timedelta
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit._sanitize import printable
from attestkit.attestation import Attestation
from attestkit.cli.report.endorsements import tcb_table
from attestkit.cli.report.registers import FIRST, LAST
from attestkit.event_log import EventLog
from attestkit.event_log.event import preview
from attestkit.quote import Quote
from tests.cli import evidence_files
from tests.cli.evidence_files import HOSTILE, NONCE_HEX, Files
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import SHARED, needs_shared
from tests.verifier.dcap.dcap_samples import COLLATERAL, create_td_quote
from tests.verifier.platforms import amd, intel

Capture = pytest.CaptureFixture[str]
DCAP = SHARED / "data/quotes/dcap-qvl"
VOID = {"meta"}


class Reader(HTMLParser):
    """Parser that checks nesting, and collects links, ids and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element."""
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "style"
            if name in {"href", "src", "action", "data", "srcset"}:
                self.links.append(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_endtag(self, tag: str) -> None:
        """Close an element, which must be the last opened one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the visible text."""
        if self.open and self.open[-1] != "style":
            self.text += data


def read(path: Path) -> Reader:
    """Parse a page, and check the invariants of all pages."""
    text = path.read_text("utf-8")
    page = Reader(text)
    assert page.tags.isdisjoint({"script", "img", "iframe", "link", "object", "embed", "form"})
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "<dd></dd>" not in text
    attributes = text.partition('id="attributes"')[2].partition("</section>")[0]
    assert attributes.count("<dd>") == attributes.count("<dd><code>")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    named = b64encode(sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{named}'" in text
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(text)
    return page


def report(files: Files, *words: str, code: int = 0) -> Reader:
    """Run the command, and parse its page."""
    page = files.folder / "page.html"
    page.unlink(missing_ok=True)
    assert main(["report", *words, "-o", str(page)]) == code
    return read(page)


def test_report_accepted_evidence_has_every_section(files: Files) -> None:
    """The page has verdict, steps, app, registers, chain, TCB levels and collateral."""
    page = report(files, str(files.evidence), *files.trusted)
    assert {"verdict", "steps", "app", "registers", "chain", "tcb", "collateral"} <= page.ids
    for text in (
        "Accepted",
        "UpToDate",
        "Simulated evidence",
        "Freshness was not checked",
        intel.APP_ID.hex(),
        "log agrees",
        "system-ready",
        "EV_EFI_VARIABLE_DRIVER_CONFIG",
        "SecureBoot",
        "Intel SGX PCK Certificate",
        "Intel SGX Root CA",
        "This platform",
        "2024-11-13",
        "valid",
    ):
        assert text in page.text, text
    evidence = intel.evidence()
    for register in evidence.event_log.replay():
        assert register.hex() in page.text
    for event in evidence.event_log.events:
        assert event.digest.hex() in page.text
    assert "unverified" not in page.text
    fresh = report(files, str(files.evidence), *files.trusted, "--nonce", NONCE_HEX)
    assert "Freshness was not checked" not in fresh.text
    certificate = report(files, str(files.certificate), *files.trusted)
    assert "Freshness was not checked" in certificate.text
    assert "Possession of the key" in certificate.text


def test_report_rejected_evidence_is_marked_unverified(files: Files, capsys: Capture) -> None:
    """The page has the reason and marks each section as unverified."""
    page = report(files, str(files.evidence), *files.trusted[2:], code=2)
    assert "Rejected" in page.text
    assert "trust anchor" in page.text
    assert "must not be relied on" in page.text
    sections = len(page.ids - {"verdict", "steps"})
    assert page.text.count("unverified") >= sections
    assert capsys.readouterr().err.count("\n") == 1
    again = report(files, str(files.evidence), *files.trusted, "--report-data", "ff", code=4)
    assert "Refused by policy" in again.text
    assert "the quote's signature is valid" in again.text  # what had passed


def test_report_shows_both_values_of_differing_register(files: Files) -> None:
    """A differing register is shown with the value and the replay."""
    genuine = intel.evidence()
    assert genuine.quote is not None
    log = intel.log_of([*intel.BOOT, ("more", b"")])
    path = files.put("other", Attestation.for_tdx(genuine.quote, log, genuine.config).to_bytes())
    page = report(files, str(path), *files.trusted, code=2)
    assert page.text.count("log differs") == 1
    assert genuine.quote.rtmrs[3].hex() in page.text
    assert log.replay()[3].hex() in page.text


def test_report_accepts_certificate_bundle_and_quote(files: Files) -> None:
    """Certificates, bundles and quotes have pages, and the time of a bundle is named."""
    page = report(files, str(files.certificate), *files.trusted)
    assert "log shortened" in page.text
    page = report(files, str(files.bundle), *files.own_instant)
    assert "Verified at the time of the bundle" in page.text
    assert "the time of the bundle" in page.text
    later = ["--at", (intel.NOW + timedelta(minutes=1)).isoformat()]
    page = report(files, str(files.bundle), "--trust-anchor", str(files.anchor), *later)
    assert "the time of the bundle" not in page.text
    assert "Collateralfrom the bundle" in page.text.replace("\n", "")
    page = report(files, str(files.quote), *files.trusted)
    assert "app" not in page.ids


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1b[2J<script>"])
def test_report_unreadable_input_has_verdict_only(content: bytes, files: Files) -> None:
    """An unreadable file has a page with verdict and reason only."""
    page = report(files, str(files.put("nonsense", content)), *files.trusted, code=5)
    assert "Unreadable" in page.text
    assert page.ids == {"verdict", "steps"}


def test_report_malformed_snp_report_has_verdict_only(files: Files) -> None:
    """A report of an unknown version is rejected with a page that says so."""
    report_of_chip = amd.report()
    raw = amd.launched_evidence().to_bytes().replace(report_of_chip[:4], b"\x63\0\0\0", 1)
    page = report(files, str(files.put("unknown", raw)), *files.trusted, code=5)
    assert page.ids == {"verdict", "steps"}
    assert "version" in page.text


def test_report_escapes_hostile_text(files: Files) -> None:
    """Markup and control characters in evidence are escaped."""
    raw = evidence_files.hostile_evidence().to_bytes()
    name = HOSTILE.replace("/", "").replace("\0", "")
    page = report(files, str(files.put(name, raw)), *files.trusted, code=2)
    assert "<script>alert(1)</script>" in page.text
    assert "\\u001b" in page.text
    assert "\\u202e" in page.text


def _long_log(events: int) -> EventLog:
    return intel.log_of([*intel.BOOT, *[("e", b"x" * 40)] * events])


@pytest.mark.slow
def test_report_long_log_is_shortened(files: Files) -> None:
    """Of a long log, only the first and last events are shown."""
    log = _long_log(65_000)
    evidence = Attestation.for_tdx(intel.quote_of(log), log, intel.IMAGE.vm_config)
    path = files.put("long", evidence.to_bytes())
    page = report(files, str(path), *files.trusted)
    hidden = len([event for event in log.events if event.register == 3]) - FIRST - LAST
    assert f"{hidden} more events are not shown here" in page.text
    assert (files.folder / "page.html").stat().st_size < 500_000


def test_report_json_has_page_path(files: Files, capsys: Capture) -> None:
    """The JSON has the verdict and the path of the page."""
    page = files.folder / "page.html"
    words = ["report", "--json", str(files.evidence), "-o", str(page), *files.trusted]
    assert main(words) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["page"], output["verdict"]) == (str(page), "accepted")
    assert main(["report", str(files.evidence), *files.trusted]) == 1  # no -o
    capsys.readouterr()
    words = ["report", "--json", str(files.evidence), "-o", "-", *files.trusted]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "both write to stdout" in captured.err


def _samples() -> list[str]:
    folder = SHARED / "data"
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".md"
    )


@needs_shared
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_report_real_samples_have_valid_pages(every: int, files: Files) -> None:
    """Every real sample has a well-formed page and no traceback."""
    page = files.folder / "page.html"
    collateral = str(DCAP / "tdx_quote_collateral.json")
    complete = {"quotes/dcap-qvl/tdx_quote", "dstack/simulator/attestation.bin"}
    for name in sorted({*limited(_samples()[::every]), *complete}):
        page.unlink(missing_ok=True)
        words = ["report", str(SHARED / "data" / name), "-o", str(page), "--collateral", collateral]
        assert main([*words, "--at", "2025-07-01"]) in {0, 2, 3, 4, 5}, name
        shown = read(page)
        assert name not in complete or {"registers", "chain", "tcb"} <= shown.ids, name


@needs_shared
def test_report_marks_tcb_level_of_platform(files: Files) -> None:
    """The first TCB level that the platform reaches is marked, with lower SVNs underlined."""
    page = files.folder / "page.html"
    for name, at, code in (("tdx_quote", "2025-07-01", 0), ("tdx_quote_outdated", "2026-03-01", 2)):
        words = [str(DCAP / name), "--collateral", str(DCAP / f"{name}_collateral.json")]
        report(files, *words, "--at", at, code=code)
        text = page.read_text()
        rows = re.findall(r'<tr class="mine ok"><td class="date">([^<]*)', text)
        assert rows == (["2024-03-13"] if code == 0 else [])
        assert ('<span class="short">5</span>' in text) == (code == 2)


@pytest.mark.parametrize(
    ("svns", "reached", "short"),
    [((4, 1, 3), 0, []), ((4, 1, 2), 1, [2]), ((4, 0, 3), 1, [0])],
)
def test_tcb_table_compares_module_with_its_own_levels(
    svns: tuple[int, ...], reached: int, short: list[int]
) -> None:
    """A TDX module with a version has its own levels, instead of the first two components."""
    raw = create_td_quote(tee_tcb_svn=bytes(svns).ljust(16, b"\0"))
    table = tcb_table(COLLATERAL, Quote.parse(raw))
    assert table is not None
    levels = table.levels[1:]
    assert [row.css.startswith("mine") for row in levels].index(True) == reached
    assert [n for n, (_, lower) in enumerate(levels[0].components[1]) if lower] == short


@needs_shared
def test_report_marks_omitted_steps(files: Files) -> None:
    """Omitted steps have a different mark."""
    folder = SHARED / "data/snp/virtee-sev"
    words = [str(folder / "report_milan.hex"), "--at", "2024-06-01"]
    for name in ("vcek_milan.der", "cert_chain_milan"):
        words += ["--certificate", str(folder / name)]
    page = report(files, *words)
    assert "SEV-VCEK" in page.text
    text = (files.folder / "page.html").read_text()
    for step in (
        "revocation was not checked",
        "HOST_DATA was not compared",
        "replay was left",
        "the platform&#39;s vendor names no advisories",
    ):
        assert f'<li class="left-out">{step}' in text
    assert "<li>the report&#39;s signature is valid" in text


@needs_shared
def test_report_outdated_snp_platform_has_caution(files: Files) -> None:
    """An outdated SEV-SNP platform is marked with caution."""
    path = SHARED / "data/dstack/verifier/sev-snp-attestation.json"
    words = [str(path), "--at", "2026-07-01", "--policy", "development"]
    page = report(files, *words)
    text = (files.folder / "page.html").read_text()
    assert '<li class="caution">caution: OutOfDate: ' in text
    assert '<li class="caution">caution: TCB status OutOfDate is accepted' in text
    assert "no security advisory applies" not in page.text
    assert "Policydevelopment" in page.text.replace("\n", "")


@every_case(
    ("payload", "text", "note"),
    [
        (b"", "", "0 bytes"),
        (b"zfs", "zfs", ""),
        (b"QEMU FW CFG\0\0BootMenu\0\0\0", "QEMU FW CFG \N{MIDDLE DOT} BootMenu", ""),
        ("Boot0001".encode("utf-16-le"), "Boot0001", ""),
        (b"\x1b[2J", "1b5b324a", "4 bytes"),
        (b"\xff\x00", "ff00", "2 bytes"),
        (bytes(4), "00000000", "4 bytes"),
        (b"a" * 200, "a" * 160 + "...", "200 bytes"),
        (b"a" * 2_000_000, "61" * 80 + "...", "2000000 bytes"),
    ],
)
def test_preview_is_readable_and_short(payload: bytes, text: str, note: str) -> None:
    """A payload is shown as text if printable, else as truncated hex."""
    shown = preview(payload)
    assert (shown.text, shown.note, shown.size) == (text, note, len(payload))


def test_printable_truncates_long_text() -> None:
    """Long text is truncated, with its length."""
    assert printable("x" * 5000, 10) == "x" * 10 + " ... 5000 characters"
    assert printable("a\x00\u2028\u202eb") == "a\\u0000\\u2028\\u202eb"
