"""docs/errors.md describes every exception: bases, exit code, status, attributes, a message."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import attestkit
from attestkit import errors, ra_tls
from attestkit.backends.simulator import Simulator
from attestkit.cli.exit_codes import exit_code
from attestkit.errors import AttestKitError
from attestkit.event_log.journal import LOCK, LOG, Journal, RegisterAccess
from attestkit.event_log.journal_files import OsFolder
from attestkit.serve.rpc.dispatcher import status_of
from tests.docs.blocks import ROOT
from tests.docs.session import matches
from tests.serve.client import call
from tests.serve.server import running_server

TEXT: Final = (ROOT / "docs" / "errors.md").read_text()
SECTIONS: Final = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
ROWS: Final = re.findall(
    r"^\| \[`(\w+)`\]\(#(\w+)\) \| (.+?) \| (\d) \| (\d+) \|$", TEXT, re.MULTILINE
)


def verify(scenario: str, *, with_collateral: bool = True) -> None:
    """Verify evidence of a simulated platform with its root and collateral."""
    backend = Simulator(scenario=scenario)
    collateral = backend.collateral() if with_collateral else None
    with attestkit.Attester(backend) as tee:
        evidence, root = tee.attest(b"").to_bytes(), backend.trust_anchor
    attestkit.verify(evidence, report_data=b"", collateral=collateral, trust_anchor=root)


def fault(name: str) -> None:
    """Request evidence with an armed fault."""
    with attestkit.open("simulator", faults=name) as tee:
        tee.emit_event("event", b"")
        tee.get_quote(b"")


def replay() -> None:
    """Compare a log with a newer quote."""
    with attestkit.open("simulator") as tee:
        log = tee.event_log()
        tee.emit_event("later", b"")
        log.check(tee.get_quote(b""))


def policy_file(folder: Path) -> None:
    """Read a policy with a misspelt name."""
    (folder / "policy.toml").write_text('platform = ["dstack-tdx"]\n')
    attestkit.AppraisalPolicy.load(folder / "policy.toml")


def journal(folder: Path) -> None:
    """Read an invalid runtime log."""
    (folder / LOG).write_text("{}\n")
    access = RegisterAccess(lambda: bytes(48), lambda _: None)
    Journal(OsFolder(folder, LOCK), access, boot_id="boot-1").events()


def certificate(_: Path) -> None:
    """Verify a certificate without evidence."""
    pem = (ROOT / "tests/docs/plain.pem").read_text()
    ra_tls.verify(pem, attestkit.Verifier(collateral=None))


def event_on_snp(_: Path) -> None:
    """Emit an event on an SEV-SNP guest, which has no registers."""
    with attestkit.open("simulator", platform="snp") as tee:
        tee.emit_event("event", b"")


RAISE: Final[dict[str, Callable[[Path], object]]] = {
    "FormatError": lambda _: attestkit.Quote.parse(b"\x04\x00\x02\x00"),
    "UsageError": lambda _: attestkit.backends.load("nitro"),
    "ConfigError": policy_file,
    "UnsupportedError": event_on_snp,
    "BackendError": lambda _: fault("rtmr_extend_fails"),
    "BackendUnavailableError": lambda folder: attestkit.open("configfs_tsm", root=folder),
    "BackendBusyError": lambda _: fault("ebusy"),
    "QuoteUnavailableError": lambda _: fault("empty_outblob"),
    "JournalError": journal,
    "CollateralError": lambda _: verify("ok-v4", with_collateral=False),
    "CollateralExpiredError": lambda _: verify("root-crl-expired"),
    "VerificationError": certificate,
    "SignatureError": lambda _: verify("pck-revoked"),
    "ReplayError": lambda _: replay(),
    "PolicyError": lambda _: verify("tcb-OutOfDate"),
}


def test_every_error_is_documented() -> None:
    """Every error is once in the table and has one section; removed errors have none."""
    assert sorted(row[0] for row in ROWS) == sorted(errors.__all__)
    assert sorted(SECTIONS) == sorted([*errors.__all__, "Elsewhere"])
    assert [row[0] for row in ROWS] == [name for name in SECTIONS if name != "Elsewhere"]


def test_every_other_error_of_the_package_is_named() -> None:
    """Public errors that modules define themselves are named, too."""
    for module in pkgutil.walk_packages(attestkit.__path__, "attestkit."):
        if module.name.split(".")[-1] not in {"__main__", "plugin"}:
            importlib.import_module(module.name)
    left, found = [AttestKitError], set()
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("attestkit.") and not kind.__name__.startswith("_"):
            found.add(kind.__name__)
    assert found - set(errors.__all__) == set(
        re.findall(r"^\* `(\w+)`", SECTIONS["Elsewhere"], re.MULTILINE)
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_table_row_matches_class(row: tuple[str, ...]) -> None:
    """Bases, exit code and HTTP status of a row are those of the class."""
    name, anchor, bases, code, status = row
    kind = getattr(errors, name)
    assert anchor == name.lower()
    assert re.findall(r"`(\w+)`", bases) == [base.__name__ for base in kind.__bases__]
    error = kind("", reason="")
    assert (int(code), int(status)) == (exit_code(error), status_of(error))


@pytest.mark.parametrize("name", errors.__all__)
def test_section_names_every_attribute(name: str) -> None:
    """Every public attribute of an error of the class, own or inherited, is named."""
    kind = getattr(errors, name)
    [listed] = re.findall(
        r"^\* \*\*Attributes:\*\* (.*?)(?=^\*)", SECTIONS[name], re.MULTILINE | re.DOTALL
    )
    attributes = {word for word in vars(kind("", reason="")) if word != "_reason"} | {"reason"}
    documented = set(re.findall(r"`(\w+)`", listed))
    for base in re.findall(r"\(#(\w+)\)", listed):
        [section] = [text for title, text in SECTIONS.items() if title.lower() == base]
        documented |= set(re.findall(r"`(\w+)`", section))
    assert attributes - documented == set()
    assert inspect.getdoc(kind)


@pytest.mark.parametrize("name", errors.__all__)
def test_section_lists_every_reason(name: str) -> None:
    """The table of a class has each of its reasons once, except those of its subclasses."""
    kind = getattr(errors, name)
    listed = re.findall(r"^\| `(\w+)` \|", SECTIONS[name], re.MULTILINE)
    assert len(listed) == len(set(listed))
    narrower = [
        getattr(errors, other)
        for other in errors.__all__
        if other != name and issubclass(getattr(errors, other), kind)
    ]
    inherited = frozenset().union(*(other.reasons() for other in narrower))
    assert set(listed) <= kind.reasons()
    assert kind.reasons() - set(listed) <= inherited


@pytest.mark.parametrize("name", RAISE)
def test_message_is_raised_by_class(name: str, tmp_path: Path) -> None:
    """The message is raised by exactly this class."""
    [shown] = re.findall(r"```text\n(.*?)```", SECTIONS[name], re.DOTALL)
    with pytest.raises(getattr(errors, name)) as caught:
        RAISE[name](tmp_path)
    assert type(caught.value) is getattr(errors, name)
    assert matches(shown, str(caught.value)), str(caught.value)


def test_server_message_matches() -> None:
    """An unknown method causes the documented message and status."""
    [shown] = re.findall(r"```text\n(.*?)```", SECTIONS["NotFoundError"], re.DOTALL)
    with running_server() as server:
        answer = call(server.dstack, "Nothing/AtAll")
        assert answer.status == 404
        assert matches(shown, answer.json()["error"]), answer.json()
        server.check_log()


def test_every_message_is_tested() -> None:
    """Every message is tested, except those of the root class and of server-only errors."""
    with_text = {name for name, text in SECTIONS.items() if "```text" in text}
    assert with_text == {*RAISE, "NotFoundError"}
    assert with_text == set(errors.__all__) - {"AttestKitError"}
