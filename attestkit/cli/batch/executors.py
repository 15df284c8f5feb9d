"""Who does a fleet's work: this process, processes of this machine, or a cluster of dask's."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Final

from attestkit.errors import BackendUnavailableError, UsageError
from attestkit.verifier.batch.scheduler import leave_with_parent

__all__ = ["MOST_WORKERS", "workers"]

MOST_WORKERS: Final = 1024
_PATIENCE: Final = 10  # seconds, for a scheduler to answer


@contextlib.contextmanager
def workers(processes: int, scheduler: str | None) -> Iterator[Executor | None]:
    """Open an executor; None does the work here.

    Raises:
        UsageError: The cluster's client is not installed, or the address is none.
        BackendUnavailableError: No scheduler answers there.
    """
    if scheduler is not None:
        with _quiet(), _cluster(scheduler) as executor:
            yield executor
    elif processes == 0:
        yield None
    else:
        context = get_context("spawn")  # a fork would share the verifier's native state
        with ProcessPoolExecutor(
            processes, mp_context=context, initializer=leave_with_parent
        ) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have no word of the cluster's library reach a terminal; the verifier's own do."""
    everybody, ours = logging.root.manager, logging.getLogger("attestkit.verifier")
    before = everybody.disable
    logging.disable(logging.CRITICAL)
    # Loggers of the library come while it is loaded, each with a handler: none can be left out by
    # name. Ours asks another manager whether it may speak.
    ours.manager = logging.Manager(logging.root)
    ours.manager.disable = before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ours.manager = everybody
        logging.disable(before)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client  # late: slow to load, and few have a cluster
    except ImportError as error:
        raise UsageError(
            f"--scheduler needs dask, which is not here ({error}): pip install 'attestkit[fleet]'"
        ) from error
    connect: Any = Client  # it has no types
    try:
        client = connect(address, timeout=_PATIENCE, set_as_default=False)
    except ValueError as error:
        raise UsageError(f"--scheduler {address}: no address of a scheduler") from error
    except (OSError, TimeoutError) as error:
        raise BackendUnavailableError(f"--scheduler {address}: no scheduler answers") from error
    try:
        yield client.get_executor()
    finally:
        client.close(timeout=_PATIENCE)
