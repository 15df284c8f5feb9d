"""`open` and `aopen`: the TEE that this program runs in, or the one that it names.

They know every backend by name alone, and load the one that they open.
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


# A name that a program spells out tells the backend's class, and so what `backend` can do.
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
        backend: The name of a backend, an object that is one, or None: then what
            `$ATTESTKIT_BACKEND` names, else the first that can run here, never the simulator.
        options: What the backend takes; for the simulator `seed`, `platform`, `scenario`,
            `faults`, `quote_version`, `state_dir`, `app_compose`, `app_keys`, `vm_config` and
            `app_id`, for others see their classes.

    Raises:
        BackendUnavailableError: It cannot run here; or none can, and the text lists what was seen.
        BackendBusyError: Somebody else has the device or the state folder.
        UsageError: No backend is called so, or it does not take these options.
        BackendError: Anything else that went wrong.
    """
    if backend is None or isinstance(backend, str):
        made = make_backend(backend, options)
        try:
            return Attester(made)
        except BaseException:
            made.close()
            raise
    if options:
        raise UsageError("a backend that is an object already takes no options")
    return Attester(backend)


def make_backend(name: str | None, options: dict[str, object]) -> Backend:
    """Return the backend called `name`, or what `open` takes for None."""
    name = name or backends.named_by_environment()
    cls = backends.detect() if name is None else backends.load(name)
    # Not probed again if it was detected.
    return cls() if name is None and not options else backends.make(cls, options)


# As `attestkit.open`: a name that a program spells out tells the backend's class.
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

    `tee = await aopen()` opens it, `async with aopen() as tee` closes it as well. Arguments and
    errors are those of `attestkit.open`; nothing is opened before it is awaited or first used.
    """
    from attestkit.aio import AsyncAttester  # late: it loads asyncio

    if backend is not None and not isinstance(backend, str):
        given = backend
        return AsyncAttester(lambda: given.blocking, lambda: open(given, **options))
    return AsyncAttester(lambda: _blocks(backend), lambda: open(backend, **options))


def _blocks(name: str | None) -> bool:
    """Tell whether calls of what `open` takes for `name` wait for a device."""
    name = name or backends.named_by_environment()
    return name is None or backends.load(name).blocking
