"""Executors for bulk verification: this process, local worker processes, or a dask cluster."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Final

from attestkit._argument_checks import needs_extra
from attestkit.errors import BackendUnavailableError, UsageError
from attestkit.verifier.batch.scheduler import exit_with_parent

_TIMEOUT: Final = 10  # seconds, for the scheduler


@contextlib.contextmanager
def open_executor(processes: int, scheduler: str | None) -> Iterator[Executor | None]:
    """Context manager: open an executor for bulk verification.

    Args:
        processes: Number of local worker processes. With 0, the executor is None, and the evidence
            is verified in this process.
        scheduler: Address of a dask scheduler, `tcp://HOST:PORT`, which takes precedence over
            `processes`; None: no dask.

    Raises:
        UsageError: If dask is not installed, or the address is invalid.
        BackendUnavailableError: If the scheduler does not respond.
    """
    if scheduler is not None:
        with _silence_logging(), _cluster(scheduler) as executor:
            yield executor
    elif processes == 0:
        yield None
    else:
        context = get_context("spawn")  # a fork would share the verifier's native state
        with ProcessPoolExecutor(
            processes, mp_context=context, initializer=exit_with_parent
        ) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextlib.contextmanager
def _silence_logging() -> Iterator[None]:
    """Context manager: silence all loggers but the verifier's."""
    root_manager, verifier_logger = logging.root.manager, logging.getLogger("attestkit.verifier")
    before = root_manager.disable
    logging.disable(logging.CRITICAL)
    # dask creates loggers with handlers while it is imported, so they cannot be silenced by name.
    # The verifier's logger gets a manager of its own, which logging.disable() does not affect.
    verifier_logger.manager = logging.Manager(logging.root)
    verifier_logger.manager.disable = before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        verifier_logger.manager = root_manager
        logging.disable(before)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    with needs_extra("--scheduler", "fleet"):
        from distributed import Client  # lazy: slow to import
        from distributed.comm.addressing import get_address_host_port
    check_address: Any = get_address_host_port  # both are untyped
    connect: Any = Client
    try:
        check_address(address)  # before the client starts a thread
        client = connect(address, timeout=_TIMEOUT, set_as_default=False)
    except ValueError as error:
        message = f"--scheduler: not a valid address: {address}; use tcp://HOST:PORT"
        raise UsageError(message, reason="wrong_value") from error
    # AssertionError: the client's thread did not start within 10 s, on an overloaded machine.
    except (OSError, TimeoutError, AssertionError) as error:
        message = f"--scheduler: no response from {address}; start a dask scheduler there"
        raise BackendUnavailableError(message, reason="cannot_connect") from error
    try:
        yield client.get_executor()
    finally:
        client.close(timeout=_TIMEOUT)
