"""The doctor names each thing that is broken, with its path, its errno and its mend."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from attestkit import backends
from attestkit.__main__ import main
from attestkit.backends.linux.host_inspection import Door
from attestkit.backends.linux.release import FEATURES
from attestkit.backends.simulator import Simulator
from attestkit.cli.commands.doctor import findings
from attestkit.cli.doctor.advice import advise
from attestkit.cli.doctor.examine import QuoteTrial, try_quotes
from attestkit.cli.output import terminal
from attestkit.errors import BackendUnavailableError, QuoteUnavailableError
from tests.backends.linux.machines import MEASUREMENTS, REPORT, TABLES, make
from tests.cli.doctor.broken_machines import (
    ALL_OUT,
    BROKEN,
    CONTAINER,
    GOOD,
    QUIET,
    SNP_GUEST,
    Broken,
    look_at_machine,
)


@pytest.mark.parametrize("files", [GOOD, SNP_GUEST], ids=["TDX", "SEV-SNP"])
@pytest.mark.parametrize("more", [{}, CONTAINER], ids=["machine", "container"])
def test_a_machine_in_order_needs_nothing(
    tmp_path: Path, files: Mapping[str, str | bytes], more: Mapping[str, str]
) -> None:
    """No advice where nothing is wrong, so that every sentence below is of what was broken."""
    found = look_at_machine(tmp_path, Broken((), files=files, add=more))
    assert advise(found) == []


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_each_broken_thing_is_named_with_its_mend(tmp_path: Path, broken: Broken) -> None:
    """One sentence has the thing, where it is, what the kernel says, and what mends it."""
    advice = advise(look_at_machine(tmp_path, broken))
    told = [sentence.replace(str(tmp_path), "") for sentence in advice]
    assert [s for s in told if all(words in s for words in broken.says)], "\n".join(told)
    if not broken.backends:  # quotes can still be had, and nothing else is wrong
        assert len(told) == 1, "\n".join(told)


def test_vsock_matters_where_a_service_is_named_alone(tmp_path: Path) -> None:
    """Quotes through configfs-tsm do not need it."""
    without = Broken((), remove=("dev/vsock", "sys/module"), vsock="EPERM")
    assert advise(look_at_machine(tmp_path, without)) == []


def test_what_keeps_everything_from_working_comes_first(tmp_path: Path) -> None:
    """The way to quotes before registers, logs and keys; what to do meanwhile comes last."""
    everything = BROKEN["configfs not mounted"]
    everything = everything._replace(remove=(*everything.remove, "dev/tdx_guest", "dstack"))
    told = advise(look_at_machine(tmp_path, everything))
    assert REPORT in told[0]
    assert "/dev/tdx_guest" in told[1]
    assert 'attestkit.open("simulator")' in told[-1]


def test_the_mend_of_a_container_is_another(tmp_path: Path) -> None:
    """Modules are loaded on the host; a container is handed what it lacks."""
    for name, more in (("host", {}), ("container", CONTAINER)):
        broken = BROKEN["no device"]._replace(add=more)
        [told] = advise(look_at_machine(tmp_path / name, broken))
        assert ("docker run --device" in told) is (name == "container")


def test_an_agent_makes_the_kernel_s_doors_nobody_s_business(tmp_path: Path) -> None:
    """An app's container has the agent's socket and needs no more, TDX flags or not."""
    only_flags = {name: GOOD[name] for name in ("proc/cpuinfo", "proc/self/mountinfo")}
    out = dict.fromkeys(QUIET, "not here")
    app = Broken((), files=only_flags, backends={**out, "dstack_agent": None})
    found = look_at_machine(tmp_path, app)
    assert found.tee == "TDX"
    assert advise(found) == []
    by_name = found._replace(by_name_only={"dstack_agent": "its root is not Intel's"})
    assert any("is not taken" in told and "Intel's" in told for told in advise(by_name))
    assert any("/dev/tdx_guest" in told for told in advise(by_name))


def test_an_agent_that_was_named_and_is_not_there_is_told(tmp_path: Path) -> None:
    """Whoever set the variable learns what became of it."""
    found = look_at_machine(tmp_path, Broken(()))._replace(named_agent="/x.sock")
    [told] = advise(found)
    assert told == (
        "DSTACK_SIMULATOR_ENDPOINT=/x.sock: no agent. Start that agent, or unset the variable."
    )


def test_chosen_paths_are_named_by_their_variables(tmp_path: Path) -> None:
    """What a variable names and is not there is that variable's fault, not the kernel's."""
    found = look_at_machine(tmp_path, Broken((), remove=(MEASUREMENTS, TABLES), backends=ALL_OUT))
    paths = found.around.paths._replace(
        measurements_named=True, ccel_file=Path("/x"), tsm_entry=Path("/y")
    )
    told = " ".join(advise(found._replace(around=found.around._replace(paths=paths))))
    assert "$DCAP_TDX_RTMR_SYSFS_PATH names this folder" in told
    assert "$DSTACK_CCEL_FILE names it" in told
    assert "configfs_tsm: configfs is broken" in told


def test_a_quote_that_failed_is_told(tmp_path: Path) -> None:
    """With the backend's own words, which say what to do."""
    found = look_at_machine(tmp_path, Broken(()))
    trials = (
        QuoteTrial("configfs_tsm", 30.0, error="no quoting service"),
        QuoteTrial("x", 1, size=5),
    )
    assert advise(found._replace(quotes=trials)) == [
        "configfs_tsm gave no quote: no quoting service."
    ]


def test_a_backend_without_registers_leaves_the_log_uncompared(tmp_path: Path) -> None:
    """RTMR3 that nobody can read is no reason to alarm anybody."""
    found = look_at_machine(tmp_path, Broken((), remove=(MEASUREMENTS,), kernel="6.12.94"))
    assert found.runtime_log.state == "unknown"
    assert found.runtime_log.advice is None


# -- quotes ----------------------------------------------------------------------------------------


class Slow(Simulator):
    """A backend that moves a clock while it works."""

    now = 0.0
    failure: Exception | None = None
    other = False

    def get_quote(self, report_data: bytes) -> bytes:
        """Take a quarter of a second."""
        Slow.now += 0.25
        if self.failure is not None:
            raise self.failure
        return super().get_quote(bytes(64) if self.other else report_data)


@pytest.mark.parametrize(
    ("failure", "other", "error"),
    [
        (None, False, None),
        (None, True, "it is over other report data than was asked"),
        (QuoteUnavailableError("no service"), False, "no service"),
        (ZeroDivisionError("oops"), False, "ZeroDivisionError: oops"),
    ],
)
def test_a_quote_is_timed_and_read(
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception | None,
    other: bool,
    error: str | None,
) -> None:
    """How long it took, how long it is, and if it is what was asked for."""
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


def test_quotes_are_asked_for_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Here nobody but the simulator can, which is not asked."""
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quotes"] is None
    assert main(["doctor", "--json", "--quote"]) == 0
    trials = json.loads(capsys.readouterr().out)["quotes"]
    assert "simulator" not in [trial["backend"] for trial in trials]


# -- output ----------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(backends.signs_of_hardware()), reason="there are signs of a TEE here")
def test_this_machine_has_no_tee(capsys: pytest.CaptureFixture[str]) -> None:
    """An ordinary machine is told so, in sections, and the exit code is 0."""
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    for title in ("Machine", "The kernel's doors", "Backends", "Keys and logs", "Installed"):
        assert f"\n{title}\n" in page
    assert "1. No TEE was found" in page
    assert "[ok] simulator" in page
    assert "[--] tdx_guest" in page


def test_a_broken_machine_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a TDX guest needs and lacks is broken there, not only absent."""
    make(tmp_path, GOOD)
    (tmp_path / "dev/tdx_guest").unlink()
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert f"below {tmp_path}" in page
    assert "[ok] TEE" in page
    assert "[!!] tdx_guest" in page
    assert "[--] sev-guest" in page
    assert "[ok] boot log" in page
    assert "[ok] runtime log" in page
    assert not [line for line in page.splitlines() if line.endswith(" ")]


def test_the_json_has_what_its_documentation_says(tmp_path: Path) -> None:
    """Every key is documented, and every value is plain JSON."""
    found = findings(make(tmp_path, GOOD))
    assert json.loads(json.dumps(found)) == found
    documentation = findings.__doc__ or ""
    for key in [*found, *found["linux"], *found["cpu"], *found["doors"], *found["runtime_log"]]:
        assert f"`{key}`" in documentation, key
    assert found["tee"] == "TDX"
    assert set(found["linux"]["features"]) == set(FEATURES)
    assert list(found["doors"]["tdx_guest"]) == list(Door._fields)
    assert found["boot_log"]["events"] > 5
    assert found["runtime_log"]["state"] == "empty"
    assert set(found["backends"]) >= set(backends.BUILTIN)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_every_width_holds_all_words(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A narrow terminal folds the lines, and loses nothing."""

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
    stacked = "[ok] TEE\n     TDX\n" in "\n".join(map(str.rstrip, page.splitlines()))
    assert stacked is (width < terminal.NARROW)
    for words in (f"{tmp_path}/dev/tdx_guest", "Acontainerenginemakesafolderwhere"):
        assert words in folded


def test_what_a_machine_says_of_itself_cannot_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters of a stranger's file are shown as such."""
    make(tmp_path, {**GOOD, "run/systemd/container": "x\x1b[31mred\n"})
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--root", "/nonexistent"], {}),
        (["--root"], {}),
        (["--bogus"], {}),
        ([], {"DCAP_TDX_QUOTE_CONFIGFS_PATH": "relative"}),
        ([], {"DSTACK_HOST_SHARED_DIR": "relative"}),
    ],
)
def test_a_wrong_call_is_code_1_and_one_line(
    words: list[str],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The only way to another exit code than 0."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", *words]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)


def test_other_commands_do_not_pay_for_the_doctor() -> None:
    """Its backends are loaded when it runs, not with the command tree."""
    code = "import sys, attestkit.cli; print([n for n in sys.modules if 'doctor_' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_agent_for_its_name_only_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs, and `attestkit.open()` by itself would not take it: both are said."""

    class Agent(Simulator):
        @classmethod
        def probe_unnamed(cls) -> None:
            raise BackendUnavailableError("it is simulated")

    real = backends.load
    monkeypatch.setattr(
        backends, "load", lambda name: Agent if name == "dstack_agent" else real(name)
    )
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", "/nowhere.sock")
    found = findings(tmp_path)
    assert found["backends"]["dstack_agent"] is None
    assert found["by_name_only"] == {"dstack_agent": "it is simulated"}
    assert found["named_agent"] == "/nowhere.sock"
    assert any("it is simulated" in told for told in found["advice"])
