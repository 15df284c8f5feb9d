"""deploy/: units that systemd accepts, options that exist, and an image of this tree."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.serve.config.command_line import parse_options
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import VerifierSettings, decide_verifier
from attestkit.serve.verifier_service import app
from tests.runner.cases import every_case
from tests.serve.server import ROOT

DEPLOY = ROOT / "deploy"
SYSTEMD = DEPLOY / "systemd"
PYTHON = "/opt/attestkit/bin/python"
UNITS = ("attestkit.service", "attestkit.socket", "attestkit-http.socket")
VERIFIERS = "attestkit-verifier@.service"
BACKOFF = "attestkit-verifier-backoff.conf"
PROXY = DEPLOY / "haproxy-verifier.cfg"


def settings(unit: str) -> list[tuple[str, str]]:
    """Return the settings of a unit, in their order."""
    lines = (SYSTEMD / unit).read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and line[0] not in "#[")
    return [(name, value) for name, value in pairs]


def all_of(unit: str, name: str) -> list[str]:
    """Return the values of a setting."""
    return [value for found, value in settings(unit) if found == name]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a Python of this machine."""
    for unit in UNITS:
        text = (SYSTEMD / unit).read_text().replace(PYTHON, sys.executable)
        (tmp_path / unit).write_text(text)
    return tmp_path


def run_program(
    name: str, *arguments: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run an installed program, or skip."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"{name} is not here")
    return subprocess.run(
        [program, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze."""
    return run_program("systemd-analyze", *arguments)


def verify_units(*paths: Path) -> tuple[int, list[str]]:
    """Return the exit code of `systemd-analyze verify`, and its messages about our units."""
    done = analyze("verify", "--man=no", *map(str, paths))
    return done.returncode, [line for line in done.stderr.splitlines() if "attestkit" in line]


def needs_systemd(version: int, what: str) -> None:
    """Skip if systemd is older than the version that introduced `what`."""
    found = int(analyze("--version").stdout.split()[1])
    if found < version:
        pytest.skip(f"{what}: needs systemd {version}, this is {found}")


def write_verifier(folder: Path) -> Path:
    """Write an instance of the verifiers' unit, with a Python of this machine."""
    path = folder / VERIFIERS.replace("@", "@8081")
    path.write_text((SYSTEMD / VERIFIERS).read_text().replace(PYTHON, sys.executable))
    return path


# -- systemd ---------------------------------------------------------------------------------------


def test_systemd_accepts_units(units: Path) -> None:
    """No setting is unknown, and no value is ignored by systemd."""
    assert verify_units(*(units / unit for unit in UNITS)) == (0, [])


# In tenths, the unit of systemd-analyze's threshold: below 10 a service is safe, below 30 OK.
EXPOSURES = [((), 20), (("user",), 16), (("offline",), 11), (("offline", "user"), 8)]


@pytest.mark.parametrize(("drop_ins", "exposure"), EXPOSURES)
def test_service_exposure_is_low(units: Path, drop_ins: tuple[str, ...], exposure: int) -> None:
    """systemd-analyze rates the exposure as low, and shows the effect of each drop-in."""
    path = units / "attestkit.service"
    folder = units / "attestkit.service.d"
    folder.mkdir()
    for name in drop_ins:
        text = (SYSTEMD / f"attestkit-{name}.conf").read_text()
        (folder / f"{name}.conf").write_text(text.replace(PYTHON, sys.executable))
    words = ("security", "--offline=yes", "--no-pager")
    done = analyze(*words, f"--threshold={exposure}", str(path))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout.splitlines()[-1]
    assert analyze(*words, f"--threshold={exposure - 1}", str(path)).returncode != 0
    checked = analyze("verify", "--man=no", *(str(units / unit) for unit in UNITS))
    assert [line for line in checked.stderr.splitlines() if str(units) in line] == []


@every_case(
    ("unit", "name", "values"),
    [
        ("attestkit.service", "LimitCORE", ["0"]),  # a core dump would contain keys
        # Without the TPM, detection at Google skips its backend.
        (
            "attestkit.service",
            "DeviceAllow",
            ["/dev/tdx_guest rw", "/dev/sev-guest rw", "/dev/tpmrm0 rw"],
        ),
        # Without the event log, registers with events cannot be replayed.
        ("attestkit.service", "RuntimeDirectoryPreserve", ["yes"]),
        (VERIFIERS, "Restart", ["always"]),
        (VERIFIERS, "StartLimitIntervalSec", ["0"]),
        # The supervisor closes the listener before systemd signals its workers.
        (VERIFIERS, "KillMode", ["mixed"]),
        (BACKOFF, "RestartSteps", ["5"]),
        (BACKOFF, "RestartMaxDelaySec", ["10s"]),
        # The order of the server: the first socket is dstack.sock, the second tappd.sock.
        ("attestkit.socket", "ListenStream", ["/run/dstack.sock", "/run/tappd.sock"]),
        ("attestkit.socket", "FileDescriptorName", []),
        ("attestkit-http.socket", "ListenStream", ["0.0.0.0:8090"]),
        ("attestkit-http.socket", "FileDescriptorName", ["http"]),
    ],
)
def test_unit_has_setting(unit: str, name: str, values: list[str]) -> None:
    """A unit has the settings that safety and restarts depend on."""
    assert all_of(unit, name) == values


def test_udev_accepts_rules() -> None:
    """The rules pass udevadm, except for names of users that this machine may lack."""
    version = run_program("udevadm", "--version").stdout.strip()
    if int(version) < 254:
        pytest.skip(f"udevadm verify: needs systemd 254, this is {version}")
    rules = str(DEPLOY / "60-attestkit.rules")
    done = run_program("udevadm", "verify", "--resolve-names=never", rules)
    assert done.returncode == 0, done.stderr


def test_device_belongs_to_server_user() -> None:
    """The unit, sysusers and the udev rules name the same user and the same register."""
    conf = (SYSTEMD / "attestkit-user.conf").read_text()
    rules = (DEPLOY / "60-attestkit.rules").read_text()
    [user] = re.findall(r"^User=(\w+)$", conf, re.MULTILINE)
    assert f'OWNER="{user}", GROUP="root", MODE="0600"' in rules
    assert f"u {user} - " in (SYSTEMD / "attestkit-user.sysusers").read_text()
    owned = re.findall(r"^z (\S+) 0400 (\w+) root -$", read_tmpfiles(), re.MULTILINE)
    assert owned == [
        (str(path), user) for path in (KernelPaths().ccel_table, KernelPaths().ccel_data)
    ]
    assert f"/bin/chown {user} /sys$devpath/measurements/rtmr3:sha384" in rules
    assert re.findall(r"^Environment=ATTESTKIT_BACKEND=(\w+)$", conf, re.MULTILINE) == ["tdx_ioctl"]


def read_tmpfiles() -> str:
    """Return the configuration of systemd-tmpfiles."""
    return (SYSTEMD / "attestkit-user.tmpfiles").read_text()


def test_service_supports_watchdog() -> None:
    """The command's options exist, and the unit has the settings that the watchdog needs."""
    [command] = all_of("attestkit.service", "ExecStart")
    python, *words = shlex.split(command)
    assert (python, words[:2]) == ("/opt/attestkit/bin/python", ["-m", "attestkit.serve"])
    options = parse_options(words[2:])
    assert options.watchdog
    assert dict(settings("attestkit.service"))["Type"] == "notify"
    folders = all_of("attestkit.service", "RuntimeDirectory")[0].split()
    assert [f"/run/{name}" for name in folders] == [options.dir, "/run/log/dstack"]


def test_systemd_accepts_verifiers(tmp_path: Path) -> None:
    """An instance for a port has no setting that systemd ignores, and low exposure."""
    path = write_verifier(tmp_path)
    assert verify_units(path) == (0, [])
    words = ("security", "--offline=yes", "--no-pager", "--threshold=11")
    done = analyze(*words, str(path))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout.splitlines()[-1]


def test_verifiers_listen_on_proxy_ports() -> None:
    """The options exist; the ports in the unit's first lines are those of the proxy."""
    [command] = all_of(VERIFIERS, "ExecStart")
    python, *words = shlex.split(command)
    assert (python, words[:2]) == (PYTHON, ["-m", "attestkit.serve"])
    words = [word.replace("%i", "8081").replace("%C", "/var/cache") for word in words]
    options = parse_options(words[2:])
    found = decide(options)
    assert str(found.address) == "127.0.0.1:8081"
    assert (found.alone, found.workers, options.watchdog) == (True, None, True)
    assert options.verifier_cache == "/var/cache/attestkit-verifier/collateral"
    assert all_of(VERIFIERS, "CacheDirectory") == ["attestkit-verifier"]
    ports = re.findall(r"attestkit-verifier@(\d+)", unit_text())
    assert re.findall(r'"\$\{VERIFIER_\d-127\.0\.0\.1:(\d+)\}"', PROXY.read_text()) == ports


def test_systemd_accepts_verifier_backoff(tmp_path: Path) -> None:
    """The drop-in that delays each restart longer, up to 10 s, requires systemd 254."""
    needs_systemd(254, "RestartSteps= and RestartMaxDelaySec=")
    unit = write_verifier(tmp_path)
    folder = tmp_path / f"{unit.name}.d"
    folder.mkdir()
    shutil.copy(SYSTEMD / BACKOFF, folder)
    assert verify_units(unit) == (0, [])


def decide(options: Options) -> VerifierSettings:
    """Return the settings of a verifier whose environment names a PCCS."""
    found = decide_verifier(options, {"PCCS_URL": "https://pccs"})
    assert found is not None
    return found


def unit_text() -> str:
    """Return the verifiers' unit."""
    return (SYSTEMD / VERIFIERS).read_text()


# -- the proxy -------------------------------------------------------------------------------------


def test_haproxy_accepts_configuration() -> None:
    """HAProxy accepts the file without warnings, with its own addresses and the compose file's."""
    places = {f"VERIFIER_{number}": f"127.0.0.{number}:8080" for number in (1, 2, 3)}
    for environ in ({}, {"VERIFIER_FRONT": "0.0.0.0:8080", **places}):
        done = run_program("haproxy", "-c", "-f", str(PROXY), env=environ)
        # This machine may have no name server.
        warned = [line for line in done.stderr.splitlines() if "resolv" not in line]
        assert (done.returncode, warned) == (0, [])


def test_proxy_checks_existing_path_and_repeats_little() -> None:
    """The health check's path exists; a request that reached a verifier is not repeated."""
    lines = [line.strip() for line in PROXY.read_text().splitlines()]
    [check] = [line for line in lines if line.startswith("http-check send")]
    assert check == "http-check send meth GET uri /health hdr Host localhost"
    assert [line for line in lines if line.startswith("retry-on")] == ["retry-on conn-failure"]
    # A single look-up would keep a verifier down after it restarted at another address.
    assert "default-server resolvers names init-addr last,libc,none" in lines
    assert "parse-resolv-conf" in lines[lines.index("resolvers names") :]
    [seconds] = [line.split()[2] for line in lines if line.startswith("timeout server")]
    assert float(seconds.removesuffix("s")) > app.SECONDS


# -- containers ------------------------------------------------------------------------------------


def dockerfile() -> list[str]:
    """Return the instructions of the Dockerfile, each on one line."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    return [line for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines() if line]


def instruction(name: str) -> list[str]:
    """Return the words of the last such instruction, in its exec form."""
    [*_, line] = [line for line in dockerfile() if line.startswith(f"{name} ")]
    words: list[str] = json.loads(line.removeprefix(f"{name} "))
    return words


def test_image_starts_server_without_root() -> None:
    """Entry point and command have valid options; the user is not root, the backend no default."""
    entry = instruction("ENTRYPOINT")
    assert entry[:3] == ["python", "-m", "attestkit.serve"]
    options = parse_options([*entry[3:], *instruction("CMD")])
    assert options.backend == "configfs_tsm"
    assert f'VOLUME ["{options.dir}"]' in dockerfile()
    assert "USER attestkit" in dockerfile()


def test_image_context_is_that_of_wheel() -> None:
    """The build context contains no .git, no virtual environment and no built core."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and line[0] != "#"]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    pyproject = (ROOT / "pyproject.toml").read_text()
    needed = {"attestkit", "build_cffi.py", "build_sbom.py", "pyproject.toml", "requirements"}
    needed |= set(re.findall(r'^readme = "(.+)"', pyproject, re.MULTILINE))
    [licences] = re.findall(r"^license-files = \[(.+)\]", pyproject, re.MULTILINE)
    needed |= set(re.findall(r'"(.+?)"', licences))
    assert set(kept) == needed


def test_image_installs_locked_packages() -> None:
    """Every installation has hashes, or installs the built wheel without downloads."""
    runs = " ".join(line for line in dockerfile() if line.startswith("RUN "))
    pip = re.findall(r"/bin/pip (?:install|wheel) (.*?)(?= &&|$| RUN)", runs)
    locks = [re.findall(r"-r requirements/(\S+)", words) for words in pip]
    assert sorted(lock for found in locks for lock in found) == ["build.lock", "image.lock"]
    for words, found in zip(pip, locks, strict=True):
        assert ("--require-hashes" if found else "--no-deps") in words.split()
    assert "pip wheel" not in runs.replace("pip wheel --no-deps --no-build-isolation", "")


def test_compose_starts_the_simulator_and_an_app() -> None:
    """The options exist, the app uses the socket in the volume, and compose accepts the file."""
    text = (DEPLOY / "compose.yaml").read_text()
    options = parse_options(
        [*instruction("ENTRYPOINT")[3:], *re.findall(r"^      - (--\S+)", text, re.MULTILINE)]
    )
    assert (options.backend, options.socket_mode) == ("simulator", "660")
    assert f"DSTACK_SIMULATOR_ENDPOINT: {options.dir}/dstack.sock" in text
    program_of_app = text.split("      - |\n")[1].split("\nvolumes:")[0]
    compile(re.sub(r"^ {8}", "", program_of_app, flags=re.MULTILINE), "app", "exec")
    check_compose("compose.yaml")


def check_compose(name: str) -> None:
    """Have compose parse a file."""
    version = run_program("docker-compose", "--version").stdout.strip()
    if re.search(r"version v?1\.", version):  # Debian 12
        pytest.skip(f"Compose 1 knows no `name:`, nor a seccomp profile beside the file: {version}")
    done = run_program("docker-compose", "-f", str(DEPLOY / name), "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_starts_verifiers_behind_the_proxy() -> None:
    """The options exist, and the proxy resolves each of the three by name and port."""
    text = (DEPLOY / "compose.verifier.yaml").read_text()
    found = decide(parse_options(re.findall(r"^    - (--\S+)", text, re.MULTILINE)))
    assert (found.alone, str(found.address)) == (True, "0.0.0.0:8080")
    services = re.findall(r"^  (verifier\d): \*verifier$", text, re.MULTILINE)
    places = dict(re.findall(r"^      (VERIFIER_\d): (\S+)$", text, re.MULTILINE))
    assert places == {f"VERIFIER_{name[-1]}": f"{name}:8080" for name in services}
    assert set(places) == set(re.findall(r"VERIFIER_\d", PROXY.read_text()))
    assert f"./{PROXY.name}:" in text
    check_compose("compose.verifier.yaml")
