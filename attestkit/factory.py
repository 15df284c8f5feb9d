"""`open` and `aopen`: open the TEE that this program runs in, or the backend of a given name.

A backend is imported when it is opened.
"""

from typing import TYPE_CHECKING, Literal, TypeVar, overload

from attestkit import backends
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.aio import AsyncAttester
    from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx
    from attestkit.backends.dstack_agent import DstackAgent
    from attestkit.backends.recording import Recording
    from attestkit.backends.simulator import Simulator
    from attestkit.backends.simulator.snp_simulator import SnpSimulator
    from attestkit.backends.tdx_ioctl import TdxIoctl

__all__ = ["aopen", "make_backend", "open"]

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
            `$ATTESTKIT_BACKEND`, else the first one that works here, but never the simulator.
        options: Options of the backend. The simulator has `seed`, `platform`, `scenario`, `faults`,
            `quote_version`, `state_dir`, `app_compose`, `app_keys`, `vm_config`, `app_id`, `gpus`
            and `tpm`. The classes of the other backends document their options.

    Raises:
        BackendUnavailableError: If the backend, or without a name every backend, is unusable here.
        BackendBusyError: If another process uses the device or the state folder.
        UsageError: If the name or an option is unknown or invalid.
        BackendError: If the backend fails otherwise.
    """
    if backend is None or isinstance(backend, str):
        made = make_backend(backend, options)
        try:
            return Attester(made)
        except BaseException:
            made.close()
            raise
    if options:
        message = "options: not valid with a backend object; pass the name of a backend"
        raise UsageError(message, reason="conflict")
    return Attester(backend)


def make_backend(name: str | None, options: dict[str, object]) -> Backend:
    """Return a new backend named `name`; None selects it as `open` does."""
    name = name or backends.backend_from_environment()
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

    `tee = await aopen()` opens it; `async with aopen() as tee` also closes it. Arguments and errors
    are those of `attestkit.open`. The TEE is opened when awaited or first used.
    """
    from attestkit.aio import AsyncAttester  # late: it loads asyncio

    if backend is not None and not isinstance(backend, str):
        given = backend
        return AsyncAttester(lambda: given.blocking, lambda: open(given, **options))
    return AsyncAttester(lambda: _blocks(backend), lambda: open(backend, **options))


def _blocks(name: str | None) -> bool:
    """Return whether the backend that `open(name)` opens may block."""
    name = name or backends.backend_from_environment()
    return name is None or backends.load(name).blocking
