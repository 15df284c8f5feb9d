"""The page of `attestkit doctor`: what was found, with marks that read without colour."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from attestkit.backends.linux.host_inspection import Door
from attestkit.backends.linux.release import FEATURES
from attestkit.cli.doctor.examine import Examined
from attestkit.cli.output import console
from attestkit.cli.output.plain_text import Check

__all__ = ["show_page"]

LEGEND: Final = "[ok] in order   [!!] broken   [--] not there"


def show_page(found: Examined, package: dict[str, Any], advice: Sequence[str]) -> None:
    """Print everything; `package` is what is installed, `advice` what to do, in order."""
    root = found.around.root
    console.lines(["attestkit doctor", LEGEND, *([] if root == "/" else [f"below {root}"])])
    console.checks("Machine", _machine(found))
    console.checks("The kernel's doors", _doors(found))
    console.checks("Backends", _backends(found))
    console.checks("Keys and logs", _logs(found))
    console.checks("Installed", _installed(package))
    nothing = ["Nothing: all that attestkit needs is in order."]
    console.steps("What to do next", advice or nothing)


def _machine(found: Examined) -> Iterator[Check]:
    around, kernel = found.around, found.around.kernel
    yield Check("ok" if found.tee else "--", "TEE", found.tee or "no sign of one")
    for sign in found.signs:
        yield Check("ok" if sign.positive else "--", sign.what, sign.saw)
    lacks = [what for name, (_, what) in FEATURES.items() if not kernel.has(name)]
    since = f"lacks {', '.join(lacks)}" if lacks else "has all that attestkit asks for"
    since = since if kernel.known else "of no known number"
    unsafe = found.tee == "TDX" and kernel.known and not kernel.repaired
    yield Check("!!" if unsafe else "ok", "Linux", f"{kernel.text}: {since}")
    cpu = around.cpu
    runs_on = f"on {cpu.hypervisor}" if cpu.hypervisor else "no hypervisor"
    says = f"{runs_on}; TDX guest: {'yes' if cpu.tdx else 'no'}; isolation: {cpu.isolation}"
    yield Check("  ", "CPUID", says if cpu.known else "unknown: the plain core cannot ask")
    for platform_found in around.platforms:
        mark = "ok" if platform_found.supported else "!!"
        yield Check(mark, platform_found.name, f"{platform_found.saw}: {platform_found.advice}")
    if around.container:
        yield Check("  ", "container", "; ".join(around.container))


def _door(door: Door, *, needed: bool = True, more: str = "") -> Check:
    """Show a door by its last name; what is not there is broken only where it is needed."""
    if door.there:
        text = f"{door.path}: {door.kind}, {door.mode} {door.owner}:{door.group}"
    else:
        text = door.path
    if door.error is not None:
        text = f"{text}: {door.error}"
    absent = not door.there and not needed
    mark = "ok" if door.error is None else "--" if absent else "!!"
    return Check(mark, Path(door.path).name, f"{text}{more}")


def _doors(found: Examined) -> Iterator[Check]:
    around = found.around
    tdx, snp = found.tee == "TDX", found.tee == "SEV-SNP"
    mounts = f"; configfs {around.mounts.configfs}"
    yield _door(around.report, needed=found.tee is not None, more=mounts)
    if around.entries:
        yield Check("  ", "entries", ", ".join(around.entries))
    yield _door(around.tdx_guest, needed=tdx)
    for node in around.old_nodes:
        if node.there:
            yield Check("!!", Path(node.path).name, f"{node.path}: of a driver that is too old")
    yield _door(around.sev_guest, needed=snp)
    yield _door(around.measurements, needed=tdx, more=f"; sysfs {around.mounts.sysfs}")
    yield _door(around.rtmr3, needed=tdx)
    yield _door(around.ccel_table, needed=tdx)
    data = _door(around.ccel_data, needed=tdx, more=f"; /sys/firmware {around.mounts.firmware}")
    yield data._replace(name="CCEL log")
    port = f"; port {found.service.port}" if found.service.port else ""
    conf = _door(around.attest_conf, needed=False, more=port)
    wrong = found.service.error
    yield conf._replace(mark="!!", text=wrong) if wrong else conf
    vsock = around.vsock
    transports = ", ".join(vsock.transports) or "none seen"
    says = f"sockets: {vsock.socket or 'yes'}; {vsock.node.path}: {vsock.node.error or 'there'}"
    reaches = vsock.socket is None and (vsock.node.there or vsock.transports)
    yield Check("ok" if reaches else "--", "AF_VSOCK", f"{says}; transports: {transports}")


def _backends(found: Examined) -> Iterator[Check]:
    for name, why in found.backends.items():
        usable = "usable by its name" if name in found.by_name_only else "usable"
        yield Check("--" if why else "ok", name, why or usable)
    for trial in found.quotes or ():
        took = f"{trial.size} bytes in {trial.seconds * 1000:.1f} ms"
        text = f"{took}, well formed" if trial.error is None else f"{took}: {trial.error}"
        mark = "ok" if trial.error is None else "!!"
        yield Check(mark, f"quote of {trial.backend}", text)
    if found.quotes == ():
        yield Check("--", "quote", "no backend can be asked but the simulator, which was left out")


def _logs(found: Examined) -> Iterator[Check]:
    around, log = found.around, found.runtime_log
    seen = [door for door in around.agent_sockets if door.there or door.error != "ENOENT"]
    for door in seen:
        yield _door(door)._replace(name="agent socket")
    if not seen:
        yield Check("--", "agent socket", ", ".join(door.path for door in around.agent_sockets))
    for door in around.app_files:
        yield _door(door, needed=False)
    boot = found.boot_log
    if boot.error is not None:
        yield Check("!!", "boot log", boot.error)
    elif boot.size:
        yield Check("ok", "boot log", f"{boot.events} events in {boot.size} bytes")
    else:
        yield Check("--", "boot log", "none")
    if found.tee == "TDX":
        mark = "ok" if log.good else "--" if log.state == "unknown" else "!!"
        yield Check(mark, "runtime log", f"{around.runtime_log.path}: {log.says}")


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
