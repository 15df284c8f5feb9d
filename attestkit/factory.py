"""`open` and `aopen`: open the TEE that this program runs in, or the backend of a given name.

A backend is imported when it is opened.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from attestkit import backends
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.environment import backend_from_environment
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.aio import AsyncAttester
    from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx
    from attestkit.backends.dstack_agent import DstackAgent
    from attestkit.backends.recording import Recording
    from attestkit.backends.simulator import Simulator
    from attestkit.backends.simulator.snp import SnpSimulator
    from attestkit.backends.tdx_ioctl import TdxIoctl
    from attestkit.kms.boot import PinnedRoots
    from attestkit.verifier import Verifier

__all__ = ["aopen", "make_backend", "open"]

_KMS_OPTIONS: Final = ("kms", "kms_roots", "kms_verifier")

B = TypeVar("B", bound=Backend)


# A literal name determines the backend's class, and so the type of `Attester.backend`.
@overload
def open(
    backend: Literal["simulator"], *, platform: Literal["snp"], **options: object
) -> "Attester[SnpSimulator]": ...
@overload
def open(backend: Literal["simulator"], **options: object) -> "Attester[Simulator]": ...
@overload
def open(
    backend: Literal["configfs_tsm"], **options: object
) -> "Attester[ConfigfsTdx | ConfigfsSnp]": ...
@overload
def open(backend: Literal["tdx_ioctl"], **options: object) -> "Attester[TdxIoctl]": ...
@overload
def open(backend: Literal["dstack_agent"], **options: object) -> "Attester[DstackAgent]": ...
@overload
def open(backend: Literal["recording"], **options: object) -> "Attester[Recording]": ...
@overload
def open(backend: str | None = None, **options: object) -> "Attester[Backend]": ...
@overload
def open(backend: "B") -> "Attester[B]": ...
@overload
def open(backend: str | Backend | None) -> "Attester[Backend]": ...
def open(backend: str | Backend | None = None, **options: object) -> "Attester[Backend]":
    """Open the TEE that this program runs in.

    Args:
        backend: The name of a backend, or a backend object. None: the backend in
            `$ATTESTKIT_BACKEND`, else the first one that works here, but never the simulator,
            unless `$DSTACK_SIMULATOR_ENDPOINT` names a simulated agent.
        options: `kms`, `kms_roots` and `kms_verifier`, and options of the backend. `kms` has the
            URLs of a KMS, a string or a list of them, from which the keys of the app are requested
            while it is booted; see `attestkit.kms.boot_with_kms`. `kms_roots` has the `KmsRoot` of
            each trusted KMS, or is `SimulatedRoots`, or "first-use", which trusts any KMS; it may
            be missing only if the app's `key_provider_id` names the KMS. `kms_verifier` verifies
            the evidence of the KMS, which is then required. The simulator has `seed`, `platform`,
            `scenario`, `faults`, `quote_version`, `state_dir`, `app_compose`, `app_keys`,
            `vm_config`, `app_id`, `gpus` and `tpm`. The classes of the other backends document
            their options.

    Raises:
        BackendUnavailableError: If the backend, or without a name every backend, is unusable here.
        KmsError: If no KMS released keys that pass all checks.
        BackendBusyError: If another process uses the device or the state folder.
        UsageError: If the name or an option is unknown or invalid, `backend` is another object, or
            the roots of a KMS are missing.
        BackendError: If the backend fails otherwise.
        ConfigError: If the simulator's `app_compose` is malformed.
        FormatError: If a recording is malformed.
        AttestKitError: With `kms`, also the other errors of `attestkit.kms.boot_with_kms`.
    """
    if backend is None or isinstance(backend, str):
        kms = _take_kms_options(options)
        made = make_backend(_booted(backend, kms, options), options)
        try:
            attester = Attester(made)
        except BaseException:
            made.close()
            raise
        if kms:
            _boot(attester, **kms)
        return attester
    if options:
        message = "options: not valid with a backend object; pass the name of a backend"
        raise UsageError(message, reason="conflict")
    return Attester(backend)


def _take_kms_options(options: dict[str, object]) -> dict[str, Any]:
    """Remove the options of a KMS from `options`; return those that are given and not None."""
    found = {name: options.pop(name) for name in _KMS_OPTIONS if name in options}
    return {name: value for name, value in found.items() if value is not None}


def _booted(name: str | None, kms: dict[str, Any], options: dict[str, object]) -> str | None:
    """Return the name of the backend: `name`, else that in the environment, else None.

    With options of a KMS, `options` get `kms_boot`: the simulator then boots the app only when the
    KMS has released its keys.

    Raises:
        UsageError: If there are options of a KMS, but not its URL.
    """
    if kms and "kms" not in kms:
        message = f"{min(kms)}: requires kms; pass the URL of the KMS"
        raise UsageError(message, reason="missing")
    name = name or backend_from_environment()
    if kms and name == "simulator":
        options["kms_boot"] = True
    return name


def _boot(
    attester: Attester[Backend],
    kms: str | Iterable[str],
    kms_roots: "PinnedRoots" = None,
    kms_verifier: "Verifier | None" = None,
) -> None:
    """Boot the app with keys from a KMS; close the attester if that fails.

    `kms` has the KMS's URLs; the others are `roots` and `verifier` of `boot_with_kms`.
    """
    from attestkit.kms.boot import boot_with_kms  # lazy: most programs have no KMS

    try:
        booted = boot_with_kms(attester, kms, roots=kms_roots, verifier=kms_verifier)
    except BaseException:
        attester.close()
        raise
    attester.not_proven = booted.not_proven


def make_backend(name: str | None, options: dict[str, object]) -> Backend:
    """Return a new backend named `name`; None selects it as `open` does.

    `options` are those of the backend's class, by name. Without any, the backend is probed first.

    Raises:
        AttestKitError: As for `open`, except for the errors of a KMS.
    """
    name = name or backend_from_environment()
    cls = backends.detect() if name is None else backends.load(name)
    # Detection has already probed it.
    return cls() if name is None and not options else backends.create(cls, options)


# As in `attestkit.open`, a literal name determines the backend's class.
@overload
def aopen(
    backend: Literal["simulator"], *, platform: Literal["snp"], **options: object
) -> "AsyncAttester[SnpSimulator]": ...
@overload
def aopen(backend: Literal["simulator"], **options: object) -> "AsyncAttester[Simulator]": ...
@overload
def aopen(
    backend: Literal["configfs_tsm"], **options: object
) -> "AsyncAttester[ConfigfsTdx | ConfigfsSnp]": ...
@overload
def aopen(backend: Literal["tdx_ioctl"], **options: object) -> "AsyncAttester[TdxIoctl]": ...
@overload
def aopen(backend: Literal["dstack_agent"], **options: object) -> "AsyncAttester[DstackAgent]": ...
@overload
def aopen(backend: Literal["recording"], **options: object) -> "AsyncAttester[Recording]": ...
@overload
def aopen(backend: str | None = None, **options: object) -> "AsyncAttester[Backend]": ...
@overload
def aopen(backend: B) -> "AsyncAttester[B]": ...
@overload
def aopen(backend: str | Backend | None) -> "AsyncAttester[Backend]": ...
def aopen(backend: str | Backend | None = None, **options: object) -> "AsyncAttester[Backend]":
    """Open the TEE that this program runs in, for asyncio.

    `tee = await aopen()` opens it; `async with aopen() as tee` also closes it. `backend` (a name,
    an object, or None to select one), options and errors are those of `attestkit.open`. The TEE is
    opened when awaited or first used.
    """
    from attestkit.aio import AsyncAttester  # late: it loads asyncio

    if backend is not None and not isinstance(backend, str):
        given = backend
        return AsyncAttester(lambda: given.blocking, lambda: open(given, **options))
    if options.get("kms") is not None:  # network
        return AsyncAttester(lambda: True, lambda: open(backend, **options))
    return AsyncAttester(lambda: _blocks(backend), lambda: open(backend, **options))


def _blocks(name: str | None) -> bool:
    """Return whether the backend that `open(name)` opens may block."""
    name = name or backend_from_environment()
    return name is None or backends.load(name).blocking
