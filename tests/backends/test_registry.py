"""A backend is found by its name; nobody named means hardware, and never a simulated one."""

import errno
from importlib import metadata
from pathlib import Path

import pytest

from attestkit import backends
from attestkit.__main__ import main
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, BackendUnavailableError, UsageError
from attestkit.factory import open as open_attester
from tests.backends.linux.machines import hyper_v, make


class Plugin:
    """A backend from another package, of which only the registry's part is here."""

    @classmethod
    def probe(cls) -> None:
        """Say that the device is not there."""
        raise BackendUnavailableError("no such device")


def install(
    monkeypatch: pytest.MonkeyPatch, *names: str, value: str = f"{__name__}:Plugin"
) -> None:
    """Let packages have these backends."""
    found = [metadata.EntryPoint(name, value, backends.GROUP) for name in names]
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group else [])


def guest(root: Path, *, cpu_flags: str = "fpu hypervisor", paths: tuple[str, ...] = ()) -> Path:
    """Make a machine with these CPU flags and files."""
    (root / "proc").mkdir(parents=True)
    text = f"processor\t: 0\nflags\t\t: {cpu_flags}\nvmx flags\t: tdx_guest\n\n" * 2
    (root / "proc/cpuinfo").write_text(text, encoding="utf-8")
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def test_the_simulator_is_found_by_its_name() -> None:
    """Names lead to classes, without asking installed packages."""
    assert backends.load("simulator") is Simulator
    assert backends.names()[: len(backends.BUILTIN)] == tuple(backends.BUILTIN)
    assert backends.probe_all()["simulator"] is None


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A slip of the pen is told what there is."""
    with pytest.raises(UsageError, match=r"'simulater'; there are: .*simulator"):
        backends.load("simulater")


def test_a_plugin_is_used_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of the group are backends too, and `probe_all` asks them."""
    install(monkeypatch, "other_tee")
    assert backends.names() == (*backends.BUILTIN, "other_tee")
    assert backends.load("other_tee").__name__ == "Plugin"
    assert backends.probe_all()["other_tee"] == "no such device"
    with pytest.raises(BackendUnavailableError, match="no such device"):
        open_attester("other_tee")


def test_a_plugin_cannot_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names the simulator gets ours, not somebody else's."""
    install(monkeypatch, "simulator")
    assert backends.load("simulator") is Simulator
    assert backends.names() == tuple(backends.BUILTIN)


def test_two_plugins_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance does not decide who makes evidence."""
    install(monkeypatch, "twice", "twice")
    with pytest.raises(BackendError, match="2 installed packages"):
        backends.load("twice")


def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error becomes ours, with the cause behind it, and does not hide the others."""
    install(monkeypatch, "broken", value="no_such_package.backend:Backend")
    with pytest.raises(BackendError, match="'broken'") as caught:
        backends.load("broken")
    assert isinstance(caught.value.__cause__, ImportError)
    assert backends.probe_all()["simulator"] is None
    assert "cannot be loaded" in str(backends.probe_all()["broken"])


def test_why_a_plugin_cannot_be_loaded_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line, which shows no traceback, and in what doctor lists; made printable."""
    text = "raise RuntimeError('no device\\n\\x1b[31m' + 'x' * 1000)"
    (tmp_path / "raising_backend.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(monkeypatch, "raising", value="raising_backend:Backend")
    why = "raising_backend:Backend cannot be loaded: RuntimeError: no device [31mxxx"
    assert main(["quote", "--backend", "raising"]) == 3
    told = capsys.readouterr().err
    for said in (told.removesuffix("\n"), str(backends.probe_all()["raising"])):
        assert why in said
        assert said.isprintable()
        assert len(said) < 400


# -- detection ---------------------------------------------------------------------------------


def test_nobody_named_is_never_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hardware it is an error, which lists what was seen and what to do."""
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    assert "simulator" not in backends.AUTO_ORDER
    with pytest.raises(BackendUnavailableError) as caught:
        open_attester()
    text = str(caught.value)
    for sign in ("CPU flag", "CCEL table", "/dev/tdx_guest", "/dev/sev-guest", "tsm report"):
        assert sign in text
    assert 'attestkit.open("simulator")' in text
    assert "ATTESTKIT_BACKEND=simulator" in text


class Here:
    """A backend that can run, and looks where it is told to."""

    asked: tuple[object, ...] = ()

    @classmethod
    def probe(cls, *paths: object) -> None:
        """Find everything that is needed."""
        cls.asked = paths


class Choosy(Here):
    """A backend that wants more where nobody named it."""

    @classmethod
    def probe_unnamed(cls) -> None:
        """Refuse."""
        raise BackendUnavailableError("name me to have me")


class Broken:
    """A backend that is here, and answers wrongly."""

    @classmethod
    def probe(cls) -> None:
        """Say what is wrong."""
        raise BackendError("the device says nonsense")


class Mistaken:
    """A backend whose own code is wrong."""

    @classmethod
    def probe(cls) -> None:
        """Fail in a way that no caller expects."""
        raise ZeroDivisionError("by zero")


def detected(*leave_out: str) -> object:
    """Return the class that is detected."""
    return backends.detect(leave_out=leave_out)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Return the classes that the built-in names lead to: none of them can run."""
    classes: dict[str, type] = dict.fromkeys(backends.BUILTIN, Plugin)
    monkeypatch.setattr(backends, "load", classes.__getitem__)
    return classes


@pytest.mark.parametrize("name", backends.AUTO_ORDER)
def test_detection_takes_whichever_can_run(found: dict[str, type], name: str) -> None:
    """Each of AUTO_ORDER, if it is the only one, and never the simulator."""
    found[name] = Here
    found["simulator"] = Choosy
    assert detected() is Here


def test_detection_takes_the_first_that_can_run(found: dict[str, type]) -> None:
    """In the order of AUTO_ORDER."""
    assert backends.AUTO_ORDER == ("dstack_agent", "configfs_tsm", "tdx_ioctl")
    found["configfs_tsm"], found["tdx_ioctl"] = Here, Choosy
    assert detected() is Here


def test_what_each_one_saw_is_in_the_error(found: dict[str, type]) -> None:
    """And so is what to do next."""
    found["dstack_agent"] = Choosy
    saw = "dstack_agent: name me to have me; configfs_tsm: no such device; tdx_ioctl: no such"
    with pytest.raises(BackendUnavailableError, match=saw) as caught:
        backends.detect()
    assert "ATTESTKIT_BACKEND=simulator" in str(caught.value)


def test_unnamed_backends_may_want_more(found: dict[str, type]) -> None:
    """An agent that turns out to be simulated is used by its name alone."""
    found["dstack_agent"], found["tdx_ioctl"] = Choosy, Here
    assert detected() is Here
    assert backends.probe_all()["dstack_agent"] is None


def test_some_can_be_left_out(found: dict[str, type]) -> None:
    """The server does not pick an agent: it would ask itself. What is left out is not asked."""
    found["dstack_agent"], found["configfs_tsm"] = Mistaken, Here
    assert detected("dstack_agent") is Here
    with pytest.raises(BackendUnavailableError) as caught:
        backends.detect(leave_out={"dstack_agent", "configfs_tsm"})
    assert "configfs_tsm" not in str(caught.value)
    assert "tdx_ioctl: no such device" in str(caught.value)


def test_a_platform_that_answers_wrongly_is_not_passed_over(found: dict[str, type]) -> None:
    """Taking the next one would hide what is wrong with the first."""
    found["configfs_tsm"], found["tdx_ioctl"] = Broken, Here
    with pytest.raises(BackendError, match="nonsense") as caught:
        backends.detect()
    assert not isinstance(caught.value, BackendUnavailableError)


def test_probes_of_hardware_can_be_pointed_elsewhere(found: dict[str, type]) -> None:
    """Those of HARDWARE get the paths, others are asked as ever."""
    assert set(backends.HARDWARE) <= set(backends.AUTO_ORDER)
    paths = KernelPaths.below("/somewhere")
    found.update({name: type(name, (Here,), {}) for name in backends.BUILTIN})
    assert set(backends.probe_all(paths).values()) == {None}
    given = {name: vars(cls).get("asked") for name, cls in found.items()}
    assert given == {
        "configfs_tsm": (paths,),
        "tdx_ioctl": (paths,),
        "dstack_agent": (),
        "simulator": (),
        "recording": (),
    }


def test_a_probe_s_own_mistake_hides_no_other(found: dict[str, type]) -> None:
    """It is told with its kind."""
    found["dstack_agent"] = Mistaken
    told = backends.probe_all()
    assert told["dstack_agent"] == "its probe failed: ZeroDivisionError: by zero"
    assert told["tdx_ioctl"] == "no such device"


def test_a_platform_that_is_not_supported_is_named(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, type], tmp_path: Path
) -> None:
    """Behind the paravisor every probe says no, and the error says why."""
    from attestkit.backends.linux import host_inspection

    del found
    make(tmp_path, {"dev/nsm": ""})
    seen = host_inspection.platforms(tmp_path, hyper_v(3))
    monkeypatch.setattr(host_inspection, "platforms", lambda: seen)
    with pytest.raises(BackendUnavailableError) as caught:
        backends.detect()
    assert "Azure TDX guest behind the paravisor (CPUID: Hyper-V" in str(caught.value)
    assert "AWS Nitro enclave (/dev/nsm is there): not supported yet" in str(caught.value)


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$ATTESTKIT_BACKEND` counts when no argument does; empty is unset."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")
    with open_attester() as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "nobody")
    with pytest.raises(UsageError, match="nobody"):
        open_attester()
    with open_attester("simulator") as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "")
    with pytest.raises(BackendUnavailableError):
        open_attester()


def test_an_ordinary_machine_shows_no_sign(tmp_path: Path) -> None:
    """Virtual or not: without a TEE there is nothing to see, and each place says so."""
    machine = guest(tmp_path)
    assert backends.signs_of_hardware(machine) == ()
    seen = backends.look_for_hardware(machine)
    assert [sign.what for sign in seen] == [
        "CPU flags",
        "CCEL table",
        "/dev/tdx_guest",
        "/dev/sev-guest",
        "tsm report folder",
    ]
    assert {sign.saw for sign in seen[1:]} == {"no such file or directory"}
    assert backends.signs_of_hardware(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("flags", "paths", "signs"),
    [
        ("fpu tdx_guest", (), ("CPU flag tdx_guest",)),
        ("fpu hypervisor sev_snp", (), ("CPU flag sev_snp",)),
        ("fpu sev_snp", (), ()),  # an SNP host is no guest
        ("fpu", ("sys/firmware/acpi/tables/CCEL",), ("CCEL table",)),
        ("fpu", ("dev/tdx_guest",), ("/dev/tdx_guest",)),
        ("fpu", ("dev/sev-guest",), ("/dev/sev-guest",)),
        ("fpu", ("sys/kernel/config/tsm/report",), ("tsm report folder",)),
        ("tdx_guest", ("dev/tdx_guest",), ("CPU flag tdx_guest", "/dev/tdx_guest")),
    ],
)
def test_each_sign_of_a_tee_is_seen(
    tmp_path: Path, flags: str, paths: tuple[str, ...], signs: tuple[str, ...]
) -> None:
    """Any one of them is enough for the server to leave the simulator alone."""
    assert backends.signs_of_hardware(guest(tmp_path, cpu_flags=flags, paths=paths)) == signs


def test_signs_of_a_tee_lead_to_the_doctor(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, type]
) -> None:
    """Signs of a TEE, and nothing that can use it: the error says who explains that."""
    del found
    sign = backends.Sign("/dev/tdx_guest", positive=True, saw="present")
    monkeypatch.setattr(backends, "look_for_hardware", lambda: (sign,))
    with pytest.raises(BackendUnavailableError, match="signs of a TEE: attestkit doctor says"):
        backends.detect()
    monkeypatch.setattr(backends, "look_for_hardware", lambda: (sign._replace(positive=False),))
    with pytest.raises(BackendUnavailableError) as caught:
        backends.detect()
    assert "signs of a TEE" not in str(caught.value)


def test_of_many_cpus_the_first_is_read(tmp_path: Path) -> None:
    """A list of hundreds of CPUs is not read to its end."""
    machine = guest(tmp_path, cpu_flags="fpu tdx_guest")
    with (machine / "proc/cpuinfo").open("ab") as file:
        file.truncate(1 << 40)  # a hole: reading it whole would fill the memory
    assert backends.signs_of_hardware(machine) == ("CPU flag tdx_guest",)


def test_a_hidden_place_is_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be looked at is reported with its reason, and is not taken for a TEE."""
    machine = guest(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    seen = backends.look_for_hardware(machine)
    assert {sign.saw for sign in seen[1:]} == {"permission denied"}
    assert not any(sign.positive for sign in seen)
