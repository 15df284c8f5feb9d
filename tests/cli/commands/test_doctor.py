"""`attestkit doctor`: problems with path, errno and remedy."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from attestkit import backends
from attestkit.__main__ import main
from attestkit._formats import toml
from attestkit.attestation.wire.evidence_parts import GcpSnp
from attestkit.backends import detection
from attestkit.backends.linux.host_inspection import PathStatus
from attestkit.backends.linux.kernel_paths import FEATURES
from attestkit.backends.simulator import Simulator
from attestkit.cli.commands.doctor import EXTRAS, findings
from attestkit.cli.doctor.examine import QuoteTrial, try_quotes
from attestkit.cli.doctor.output import advise
from attestkit.cli.output import terminal
from attestkit.errors import BackendUnavailableError, QuoteUnavailableError
from tests.backends.dstack_agent.scripted_agent import PAGE, agent_with_defaults, response
from tests.backends.linux.machines import MEASUREMENTS, REPORT, TABLES, make
from tests.cli import program
from tests.cli.doctor.broken_machines import (
    ALL_UNAVAILABLE,
    BACKENDS,
    BROKEN,
    CONTAINER,
    GOOD,
    SNP_GUEST,
    Broken,
    examine_machine,
)
from tests.docs.blocks import ROOT
from tests.tpm.collector import FakeCollector


@pytest.mark.parametrize("files", [GOOD, SNP_GUEST], ids=["TDX", "SEV-SNP"])
@pytest.mark.parametrize("more", [{}, CONTAINER], ids=["machine", "container"])
def test_advise_on_working_machine_is_empty(
    tmp_path: Path, files: Mapping[str, str | bytes], more: Mapping[str, str]
) -> None:
    """A working machine gets no remedies."""
    found = examine_machine(tmp_path, Broken((), files=files, add=more))
    assert advise(found) == []


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_advise_names_each_problem_with_its_remedy(tmp_path: Path, broken: Broken) -> None:
    """One sentence has the path, the error and the remedy of each problem."""
    advice = [s.replace(str(tmp_path), "") for s in advise(examine_machine(tmp_path, broken))]
    assert [s for s in advice if all(text in s for text in broken.expected)], "\n".join(advice)
    if not broken.backends:  # quotes still work, and nothing else is wrong
        assert len(advice) == 1, "\n".join(advice)


def test_advise_ignores_vsock_without_quoting_service(tmp_path: Path) -> None:
    """AF_VSOCK is not needed without a configured quoting service."""
    without = Broken((), remove=("dev/vsock", "sys/module"), vsock="EPERM")
    assert advise(examine_machine(tmp_path, without)) == []


def test_advise_orders_quotes_before_registers_and_keys(tmp_path: Path) -> None:
    """Remedies for quotes come first, the simulator comes last."""
    everything = BROKEN["configfs not mounted"]
    everything = everything._replace(remove=(*everything.remove, "dev/tdx_guest", "dstack"))
    advice = advise(examine_machine(tmp_path, everything))
    assert REPORT in advice[0]
    assert "/dev/tdx_guest" in advice[1]
    assert 'attestkit.open("simulator")' in advice[-1]


def test_advise_with_guest_agent_ignores_kernel_interfaces(tmp_path: Path) -> None:
    """With a usable guest agent, kernel interfaces do not matter."""
    only_flags = {name: GOOD[name] for name in ("proc/cpuinfo", "proc/self/mountinfo")}
    out = dict.fromkeys(BACKENDS, "not here")
    app = Broken((), files=only_flags, backends={**out, "dstack_agent": None})
    found = examine_machine(tmp_path, app)
    assert found.tee == "TDX"
    assert advise(found) == []
    by_name = found._replace(by_name_only={"dstack_agent": "its root is not Intel's"})
    assert any("not used by" in sentence and "Intel's" in sentence for sentence in advise(by_name))
    assert any("/dev/tdx_guest" in sentence for sentence in advise(by_name))


def test_advise_reports_missing_agent_of_environment(tmp_path: Path) -> None:
    """An agent that $DSTACK_SIMULATOR_ENDPOINT names and that is missing is reported."""
    found = examine_machine(tmp_path, Broken(()))._replace(named_agent="/x.sock")
    [sentence] = advise(found)
    assert sentence == (
        "DSTACK_SIMULATOR_ENDPOINT=/x.sock: no agent. Start that agent, or unset the variable."
    )


def test_advise_names_variables_of_missing_paths(tmp_path: Path) -> None:
    """A missing path that a variable names is reported with the variable."""
    found = examine_machine(
        tmp_path, Broken((), remove=(MEASUREMENTS, TABLES), backends=ALL_UNAVAILABLE)
    )
    paths = found.host.paths._replace(
        measurements_configured=True, ccel_file=Path("/x"), tsm_entry=Path("/y")
    )
    text = " ".join(advise(found._replace(host=found.host._replace(paths=paths))))
    assert "$DCAP_TDX_RTMR_SYSFS_PATH names this folder" in text
    assert "named by $DSTACK_CCEL_FILE" in text
    assert "configfs_tsm: configfs is broken" in text


def test_advise_reports_failed_quote(tmp_path: Path) -> None:
    """A failed quote is reported with the backend's error."""
    found = examine_machine(tmp_path, Broken(()))
    trials = (
        QuoteTrial("configfs_tsm", 30.0, error="no quoting service"),
        QuoteTrial("x", 1, size=5),
    )
    assert advise(found._replace(quotes=trials)) == ["configfs_tsm: no quote: no quoting service."]


def test_diagnosis_without_register_has_unknown_log_state(tmp_path: Path) -> None:
    """Without a readable RTMR3, the state of the runtime log is unknown, without a remedy."""
    found = examine_machine(tmp_path, Broken((), remove=(MEASUREMENTS,), kernel="6.12.94"))
    assert found.runtime_log.state == "unknown"
    assert found.runtime_log.advice is None


# -- quotes ----------------------------------------------------------------------------------------


class Slow(Simulator):
    """A backend that advances a clock while it works."""

    now = 0.0
    failure: Exception | None = None
    other = False

    def get_quote(self, report_data: bytes) -> bytes:
        """Take 0.25 seconds."""
        Slow.now += 0.25
        if self.failure is not None:
            raise self.failure
        return super().get_quote(bytes(64) if self.other else report_data)


@pytest.mark.parametrize(
    ("failure", "other", "error"),
    [
        (None, False, None),
        (None, True, "report data differs from the request"),
        (QuoteUnavailableError("no service", reason="empty"), False, "no service"),
        (ZeroDivisionError("oops"), False, "ZeroDivisionError: oops"),
    ],
)
def test_try_quotes_times_and_checks_quote(
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception | None,
    other: bool,
    error: str | None,
) -> None:
    """A quote is timed, and its report data is compared with the request."""
    monkeypatch.setattr(backends, "load", lambda _: Slow)
    monkeypatch.setattr(Slow, "failure", failure)
    monkeypatch.setattr(Slow, "other", other)
    found = {"broken": "not here", "good": None, "simulator": None}
    [trial] = try_quotes(
        backends.find_kernel_paths("/"), found, clock=lambda: Slow.now, random=lambda n: b"r" * n
    )
    assert (trial.backend, trial.error) == ("good", error)
    assert trial.seconds == 0.25
    assert (trial.size > 1000) is (failure is None)


def test_try_quotes_counts_all_parts_of_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a backend with several parts all are requested, and their bytes are counted."""
    monkeypatch.setattr(backends, "load", lambda _: FakeCollector)
    [trial] = try_quotes(backends.find_kernel_paths("/"), {"good": None}, random=bytes)
    parts = FakeCollector().collect_evidence(bytes(64))
    assert isinstance(parts, GcpSnp)
    quote = parts.vtpm_quote
    size = len(parts.report) + len(quote.message) + len(quote.signature)
    assert (trial.backend, trial.size, trial.error) == ("good", size, None)


def test_doctor_requests_quotes_only_with_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Quotes are requested only with --quote, and not from the simulator."""
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quotes"] is None
    assert main(["doctor", "--json", "--quote"]) == 0
    trials = json.loads(capsys.readouterr().out)["quotes"]
    assert "simulator" not in [trial["backend"] for trial in trials]


# -- output ----------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(backends.detect_hardware()), reason="there are signs of a TEE here")
def test_doctor_without_tee_prints_sections(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a TEE, all sections are printed and the exit code is 0."""
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    for title in ("Machine", "Kernel interfaces", "Backends", "Keys and logs", "Installed"):
        assert f"\n{title}\n" in page
    assert "1. No TEE was found" in page
    assert "[ok] simulator" in page
    assert "[--] tdx_guest" in page


def test_doctor_text_names_pure_python_core() -> None:
    """With the pure Python core, the text has the reason and a remedy."""
    environment = {"ATTESTKIT_PURE_PYTHON": "1", "PATH": "/usr/bin:/bin"}
    captured = program.run("doctor", env=environment).stdout
    assert "plain Python: ATTESTKIT_PURE_PYTHON=1" in captured
    assert "install a C compiler" in captured


def test_doctor_knows_packages_of_each_extra() -> None:
    """The extras and their packages are those of pyproject.toml."""
    project = toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    extras = project["optional-dependencies"]
    named = {
        extra: tuple(re.split("[<>=;]", package)[0] for package in extras[extra])
        for extra in extras.keys() - {"all", "dev"}
    }
    assert named == EXTRAS


def test_doctor_marks_missing_tdx_interfaces_as_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing interfaces of a TDX guest are marked as problems, others as absent."""
    make(tmp_path, GOOD)
    (tmp_path / "dev/tdx_guest").unlink()
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert f"root {tmp_path}" in page
    assert "[ok] TEE" in page
    assert "[!!] tdx_guest" in page
    assert "[--] sev-guest" in page
    assert "[ok] boot log" in page
    assert "[ok] runtime log" in page
    assert not [line for line in page.splitlines() if line.endswith(" ")]


def test_findings_documents_every_member(tmp_path: Path) -> None:
    """Every member of the JSON is documented, and every value is plain JSON."""
    found = findings(make(tmp_path, GOOD))
    assert json.loads(json.dumps(found)) == found
    documentation = findings.__doc__ or ""
    for key in [*found, *found["linux"], *found["cpu"], *found["paths"], *found["runtime_log"]]:
        assert f"`{key}`" in documentation, key
    assert found["tee"] == "TDX"
    assert set(found["linux"]["features"]) == set(FEATURES)
    assert list(found["paths"]["tdx_guest"]) == list(PathStatus._fields)
    assert found["boot_log"]["events"] > 5
    assert found["runtime_log"]["state"] == "empty"
    assert set(found["backends"]) >= set(backends.BUILTIN)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_doctor_narrow_terminal_shows_full_text(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every terminal width shows the full text."""

    def narrow(*, stderr: bool = False) -> Console:
        assert not stderr
        return Console(markup=False, no_color=True, width=width, force_terminal=True)

    make(tmp_path, {**GOOD, "run/dstack.sock/": ""})
    monkeypatch.setattr(terminal, "_console", narrow)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    page = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, page.splitlines())) <= width
    folded = "".join(page.split())
    for words in (f"{tmp_path}/dev/tdx_guest", "Containerenginescreateafolderif"):
        assert words in folded


def test_doctor_escapes_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters in files of the machine are escaped."""
    make(tmp_path, {**GOOD, "run/systemd/container": "x\x1b[31mred\n"})
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_findings_reports_agent_usable_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A usable agent that detection skips is reported, with the reason."""

    class Agent(Simulator):
        @classmethod
        def probe_for_detection(cls) -> None:
            raise BackendUnavailableError("it is simulated", reason="missing")

    real = backends.load
    for module in (backends, detection):
        monkeypatch.setattr(
            module, "load", lambda name: Agent if name == "dstack_agent" else real(name)
        )
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", "/nowhere.sock")
    found = findings(tmp_path)
    assert found["backends"]["dstack_agent"] is None
    assert found["by_name_only"] == {"dstack_agent": "it is simulated"}
    assert found["named_agent"] == "/nowhere.sock"
    assert any("it is simulated" in sentence for sentence in found["advice"])


@pytest.mark.parametrize(
    ("answer", "api"),
    [
        (response({"version": "0.6.6"}), "v1"),
        (PAGE, "v0"),
        (response({"error": "x"}, 500), None),
    ],
)
def test_doctor_reports_api_of_agent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: bytes,
    api: str | None,
) -> None:
    """The newest API of a usable agent is in the page and in the JSON."""
    make(tmp_path, GOOD)
    with agent_with_defaults(**{"v1/Version": answer}) as agent:
        monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", agent.path)
        assert findings(tmp_path)["agent_api"] == api
        assert main(["doctor", "--root", str(tmp_path)]) == 0
    assert (f", API {api}" in capsys.readouterr().out) == (api is not None)
