"""The output of `attestkit doctor` for people."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from attestkit.backends.linux.host_inspection import PathStatus
from attestkit.backends.linux.kernel import FEATURES
from attestkit.cli.doctor.examine import Diagnosis
from attestkit.cli.output import console
from attestkit.cli.output.console import Check

LEGEND: Final = "[ok] works   [!!] problem   [--] absent"


def show_page(found: Diagnosis, package: dict[str, Any], advice: Sequence[str]) -> None:
    """Print the diagnosis, the installed packages and the remedies."""
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
    """Return the line about a path; `more` is appended. A missing path is an error if `needed`."""
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
