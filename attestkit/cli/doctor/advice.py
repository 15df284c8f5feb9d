"""Remedies for the problems that `attestkit doctor` finds, from the table in remedies.toml.

A remedy names the path, the error of the kernel and the fix. Kernel interfaces come first, then
logs and keys. Problems that do not matter on this machine are omitted: an unusable quote interface
while another one works, and hardware interfaces without a TEE.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from attestkit import backends
from attestkit.backends.linux.host_inspection import PathStatus
from attestkit.backends.linux.kernel import FEATURES
from attestkit.cli.doctor.examine import Diagnosis
from attestkit.cli.doctor.runtime_log import read_table

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
    """Yield the first remedy whose conditions hold, if the problem occurs."""
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
    """Return a path and its error, with the permissions if they are its cause."""
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
        "google": any(platform.name == "Google Cloud" for platform in host.platforms),
        "gcp": found.works("gcp"),
        "agent": found.agent,
        "container": bool(host.container),
        "vulnerable": found.tee == "TDX" and host.kernel.known and not host.kernel.repaired,
        "configfs_tsm": found.works("configfs_tsm"),
        "dstack_agent": found.works("dstack_agent"),
        "quotes": found.works("configfs_tsm") or found.works("tdx_ioctl"),
        "any_backend": any(found.works(name) for name in found.backends if name != "simulator"),
        "only_tpm": [name for name in backends.HARDWARE if found.works(name)] == ["tpm"],
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
