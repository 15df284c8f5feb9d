"""The output of `attestkit doctor` for people, and the remedies, from the table in remedies.toml.

A remedy names the path, the error of the kernel and the fix. Kernel interfaces come first, then
logs and keys. Problems that do not matter on this machine are omitted: an unusable quote interface
while another one works, and hardware interfaces without a TEE.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from attestkit.backends.linux.host_inspection import PathStatus
from attestkit.backends.linux.kernel_paths import FEATURES
from attestkit.backends.registry import HARDWARE
from attestkit.cli.doctor.examine import Diagnosis
from attestkit.cli.doctor.runtime_log import read_table
from attestkit.cli.output import console
from attestkit.cli.output.console import Check

ERRNO_TEXTS: Final = {
    "ENOENT": "not found",
    "EACCES": "permission denied",
    "EPERM": "not permitted",
    "EROFS": "read-only file system",
    "EISDIR": "is a folder",
    "ENOTDIR": "not a folder",
    "ENXIO": "no driver behind it",
    "ENODEV": "no driver behind it",
    "EBUSY": "open in another process",
    "ELOOP": "symlink loop",
}
FORBIDDEN: Final = ("EACCES", "EPERM")


def advise(found: Diagnosis) -> list[str]:
    """Return remedies, each of a few sentences, most urgent first."""
    conditions, values = _conditions(found), _values(found)
    advice: list[str] = []
    for problem in read_table()["problem"]:
        if "list" in problem:
            advice.extend(LISTS[problem["list"]](found))
        else:
            advice.extend(_solve(problem, found, conditions, values))
    return advice


def _solve(
    problem: dict[str, Any], found: Diagnosis, conditions: set[str], values: dict[str, Any]
) -> Iterator[str]:
    """Yield the first remedy of a problem whose conditions hold; nothing if it does not occur.

    Args:
        problem: Row of remedies.toml: `when`, `remedies`, and optionally `path` and `effect`.
        found: The diagnosis.
        conditions: Names of the conditions that hold.
        values: Values of the placeholders in remedies, by name.
    """
    start = ""
    if path := problem.get("path"):
        status = found.host.app_files[0] if path == "app_keys" else getattr(found.host, path)
        if status.error is None:
            return
        conditions = conditions | {status.error}
        start = f"{_describe(status)}{problem.get('effect', '')}. "
    if not _hold(problem["when"], conditions):
        return
    for when, remedy in problem["remedies"].items():
        if _hold(when, conditions):
            yield start + remedy.format_map(values)
            return


def _hold(names: str, conditions: set[str]) -> bool:
    return all(
        conditions.isdisjoint(term.lstrip("!").split("|")) == term.startswith("!")
        for term in names.split()
    )


def _describe(status: PathStatus) -> str:
    """Return a path and its error as text, with the permissions if they are its cause."""
    error = status.error or ""
    text = f"{status.path}: {ERRNO_TEXTS.get(error, 'refused by the kernel')} ({error})"
    if error not in FORBIDDEN:
        return text
    return f"{text}; mode {status.mode or '?'}, {status.owner or '?'}:{status.group or '?'}"


def _values(found: Diagnosis) -> dict[str, Any]:
    """Return values for the texts in remedies.toml, by name.

    A value that is not empty is also a condition that holds.
    """
    host, kernel = found.host, found.host.kernel
    old = {
        f"old_{name}": f"Linux {kernel.text} has no {text}; it needs {major}.{minor}"
        for name, ((major, minor), text) in FEATURES.items()
        if kernel.known and not kernel.has(name)
    }
    entries = [name for name in host.entries if name.startswith("attestkit-")]
    sockets = [status for status in host.agent_sockets if status.exists]
    usable = all(status.error is None for status in sockets)
    paths = [status.path for status in sockets if status.kind == "socket" and usable]
    return {
        **found._asdict(),
        **old,
        "driver": "sev-guest" if found.tee == "SEV-SNP" else "tdx-guest",
        "old_nodes": " and ".join(node.path for node in host.old_nodes if node.exists),
        "no_conf": "" if host.attest_conf.exists else " (ENOENT)",
        "entries": ", ".join(entries[:3]) + (" and more" if len(entries) > 3 else ""),
        "socket": paths[0] if paths else "",
    }


def _conditions(found: Diagnosis) -> set[str]:
    """Return the names of the conditions in remedies.toml that hold."""
    host, service, vsock = found.host, found.service, found.host.vsock
    values = {name: bool(value) for name, value in _values(found).items()}
    conditions = {
        **values,
        # With a guest agent, kernel interfaces are not needed.
        "tee": found.tee is not None and not found.agent,
        "tdx": found.tee == "TDX" and not found.agent,
        "snp": found.tee == "SEV-SNP" and not found.agent,
        "signs": found.tee is not None or found.paravisor is not None,
        "paravisor": found.paravisor is not None and not found.agent,
        "tpm": host.tpm.error is None,
        "azure": found.works("azure"),
        "ec2": any(platform.name == "AWS EC2" for platform in host.platforms),
        "nitro_tpm": found.works("nitro_tpm"),
        "runtime_events": (found.tee == "TDX" or found.works("nitro_tpm")) and not found.agent,
        "google": any(platform.name == "Google Cloud" for platform in host.platforms),
        "gcp": found.works("gcp"),
        "agent": found.agent,
        "container": bool(host.container),
        "vulnerable": found.tee == "TDX" and host.kernel.known and not host.kernel.repaired,
        "configfs_tsm": found.works("configfs_tsm"),
        "dstack_agent": found.works("dstack_agent"),
        "quotes": found.works("configfs_tsm") or found.works("tdx_ioctl"),
        "any_backend": any(found.works(name) for name in found.backends if name != "simulator"),
        "only_tpm": [name for name in HARDWARE if found.works(name)] == ["tpm"],
        "report": host.report.error is None,
        "device": host.tdx_guest.error is None,
        "registers": host.measurements.error is None,
        "table": host.ccel_table.exists,
        "log_folder": host.runtime_log.exists,
        "unmounted": host.mounts.configfs == "not mounted",
        "masked": host.mounts.firmware == "masked",
        "named_entry": host.paths.tsm_entry is not None,
        "named_registers": host.paths.measurements_configured,
        "named_log": host.paths.ccel_file is not None,
        "port": service.port is not None,
        "service_error": service.error is not None,
        "vsock_error": vsock.socket is not None,
        "vsock_forbidden": vsock.socket in FORBIDDEN,
        "transport": bool(vsock.transports) or vsock.node.exists,
        "boot_log_error": found.boot_log.error is not None and host.ccel_data.error is None,
        "log_advice": found.runtime_log.advice is not None,
    }
    return {name for name, holds in conditions.items() if holds}


def _platforms(found: Diagnosis) -> Iterator[str]:
    for platform in found.host.platforms:
        if not platform.supported:
            yield f"{platform.name} ({platform.saw}): {platform.advice}."


def _by_name_only(found: Diagnosis) -> Iterator[str]:
    for name, reason in found.by_name_only.items():
        yield f"{name}: not used by attestkit.open() without its name: {reason}."


def _quotes(found: Diagnosis) -> Iterator[str]:
    for trial in found.quotes or ():
        if trial.error is not None:
            yield f"{trial.backend}: no quote: {trial.error}."


def _agent_sockets(found: Diagnosis) -> Iterator[str]:
    if found.works("dstack_agent"):
        return
    for status in found.host.agent_sockets:
        if status.error in FORBIDDEN:
            yield (
                f"{_describe(status)}. To use this guest agent, join the group of its socket, or "
                "run as root."
            )
        elif status.exists and status.kind != "socket":
            yield (
                f"{status.path}: is a {status.kind}, not a socket. Container engines create a "
                "folder if the file to mount does not exist on the host. Start the agent on the "
                "host first."
            )


LISTS: Final[dict[str, Callable[[Diagnosis], Iterator[str]]]] = {
    "platforms": _platforms,
    "by_name_only": _by_name_only,
    "quotes": _quotes,
    "agent_sockets": _agent_sockets,
}


LEGEND: Final = "[ok] works   [!!] problem   [--] absent"


def show_page(found: Diagnosis, package: dict[str, Any], advice: Sequence[str]) -> None:
    """Print the diagnosis, the installed packages and the remedies.

    Args:
        found: The diagnosis.
        package: Installed versions: `attestkit`, `python`, `machine`, `core` and `extras`, as in
            the JSON of `doctor`.
        advice: Remedies, most urgent first.
    """
    root = found.host.root
    console.lines(["attestkit doctor", LEGEND, *([] if root == "/" else [f"root {root}"])])
    console.checks("Machine", _machine(found))
    console.checks("Kernel interfaces", _kernel_interfaces(found))
    console.checks("Backends", _backends(found))
    console.checks("Keys and logs", _logs(found))
    console.checks("Installed", _installed(package))
    nothing = ["Nothing: everything that attestkit needs is available."]
    console.steps("What to do next", advice or nothing)


def _machine(found: Diagnosis) -> Iterator[Check]:
    host, kernel = found.host, found.host.kernel
    tee = found.tee or (f"{found.paravisor} behind a paravisor" if found.paravisor else "")
    if not tee and found.works("azure"):  # CPUID names no isolation where it is emulated
        tee = "behind a paravisor, by the HCL report"
    absent = "none; AWS attests the NitroTPM" if found.works("nitro_tpm") else "no signs"
    yield Check("ok" if tee else "--", "TEE", tee or absent)
    for sign in found.signs:
        yield Check("ok" if sign.positive else "--", sign.what, sign.saw)
    missing = [text for name, (_, text) in FEATURES.items() if not kernel.has(name)]
    features = f"lacks {', '.join(missing)}" if missing else "has all features that attestkit uses"
    features = features if kernel.known else "unknown release number"
    unsafe = found.tee == "TDX" and kernel.known and not kernel.repaired
    yield Check("!!" if unsafe else "ok", "Linux", f"{kernel.text}: {features}")
    cpu = host.cpu
    runs_on = f"on {cpu.hypervisor}" if cpu.hypervisor else "no hypervisor"
    text = f"{runs_on}; TDX guest: {'yes' if cpu.tdx else 'no'}; isolation: {cpu.isolation}"
    yield Check("  ", "CPUID", text if cpu.known else "unknown: needs the compiled core")
    for platform_found in host.platforms:
        mark = "ok" if platform_found.supported else "!!"
        yield Check(mark, platform_found.name, f"{platform_found.saw}: {platform_found.advice}")
    if host.container:
        yield Check("  ", "container", "; ".join(host.container))


def _check_path(status: PathStatus, *, needed: bool = True, more: str = "") -> Check:
    """Return the line about a path, with `more` at its end.

    A missing path is a problem if `needed`, otherwise absent.
    """
    if status.exists:
        text = f"{status.path}: {status.kind}, {status.mode} {status.owner}:{status.group}"
    else:
        text = status.path
    if status.error is not None:
        text = f"{text}: {status.error}"
    absent = not status.exists and not needed
    mark = "ok" if status.error is None else "--" if absent else "!!"
    return Check(mark, Path(status.path).name, f"{text}{more}")


def _kernel_interfaces(found: Diagnosis) -> Iterator[Check]:
    host = found.host
    tdx, snp = found.tee == "TDX", found.tee == "SEV-SNP"
    mounts = f"; configfs {host.mounts.configfs}"
    yield _check_path(host.report, needed=found.tee is not None, more=mounts)
    if host.entries:
        yield Check("  ", "entries", ", ".join(host.entries))
    yield _check_path(host.tdx_guest, needed=tdx)
    for node in host.old_nodes:
        if node.exists:
            yield Check("!!", Path(node.path).name, f"{node.path}: the driver is too old")
    yield _check_path(host.sev_guest, needed=snp)
    has_tpm = found.paravisor is not None or found.works("azure")
    yield _check_path(host.tpm, needed=has_tpm)
    yield _check_path(host.tpm_log, needed=has_tpm)._replace(name="TPM log")
    yield _check_path(host.measurements, needed=tdx, more=f"; sysfs {host.mounts.sysfs}")
    yield _check_path(host.rtmr3, needed=tdx)
    yield _check_path(host.ccel_table, needed=tdx)
    data = _check_path(host.ccel_data, needed=tdx, more=f"; /sys/firmware {host.mounts.firmware}")
    yield data._replace(name="CCEL log")
    port = f"; port {found.service.port}" if found.service.port else ""
    conf = _check_path(host.attest_conf, needed=False, more=port)
    error = found.service.error
    yield conf._replace(mark="!!", text=error) if error else conf
    vsock = host.vsock
    transports = ", ".join(vsock.transports) or "none seen"
    text = f"sockets: {vsock.socket or 'yes'}; {vsock.node.path}: {vsock.node.error or 'exists'}"
    usable = vsock.socket is None and (vsock.node.exists or vsock.transports)
    yield Check("ok" if usable else "--", "AF_VSOCK", f"{text}; transports: {transports}")


def _backends(found: Diagnosis) -> Iterator[Check]:
    for name, reason in found.backends.items():
        usable = "usable by name only" if name in found.by_name_only else "usable"
        if name == "dstack_agent" and found.agent_api:
            usable += f", API {found.agent_api}"
        yield Check("--" if reason else "ok", name, reason or usable)
    for trial in found.quotes or ():
        summary = f"{trial.size} bytes in {trial.seconds * 1000:.1f} ms"
        text = f"{summary}, well formed" if trial.error is None else f"{summary}: {trial.error}"
        mark = "ok" if trial.error is None else "!!"
        yield Check(mark, f"quote of {trial.backend}", text)
    if found.quotes == ():
        yield Check("--", "quote", "no usable backend, except the simulator, which is skipped")


def _logs(found: Diagnosis) -> Iterator[Check]:
    host, log = found.host, found.runtime_log
    seen = [status for status in host.agent_sockets if status.exists or status.error != "ENOENT"]
    for status in seen:
        yield _check_path(status)._replace(name="agent socket")
    if not seen:
        yield Check("--", "agent socket", ", ".join(status.path for status in host.agent_sockets))
    for status in host.app_files:
        yield _check_path(status, needed=False)
    boot = found.boot_log
    if boot.error is not None:
        yield Check("!!", "boot log", boot.error)
    elif boot.size:
        yield Check("ok", "boot log", f"{boot.events} events in {boot.size} bytes")
    else:
        yield Check("--", "boot log", "none of RTMRs")
    if found.tee == "TDX" or found.works("nitro_tpm"):
        mark = "ok" if log.good else "--" if log.state == "unknown" else "!!"
        yield Check(mark, "runtime log", f"{host.runtime_log.path}: {log.says}")


def _installed(package: dict[str, Any]) -> Iterator[Check]:
    own = package["attestkit"]
    yield Check("ok" if own else "--", "attestkit", own or "not installed, run from a checkout")
    yield Check("ok", "Python", f"{package['python']} {package['machine']}")
    compiled = package["core"]["runs"] == "compiled"
    core = f"compiled (C, {package['core']['level']})" if compiled else "plain Python"
    yield Check("ok" if compiled else "--", "core", f"{core}: {package['core']['reason']}")
    for extra, packages in package["extras"].items():
        versions = ", ".join(f"{name} {have or 'missing'}" for name, have in packages.items())
        yield Check("ok" if all(packages.values()) else "--", f"extra {extra}", versions)
