"""Methods of the service KMS: each is one function, which runs in a thread of the queue."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from typing import Final, TypeVar

from attestkit.kms.release.state_folder import KmsState
from attestkit.serve.job_queue import JobQueue, JobRefusedError, JobThreads
from attestkit.serve.kms_service.client_evidence import current_client
from attestkit.serve.kms_service.errors import KmsBusyError
from attestkit.serve.kms_service.release_engine import ReleaseEngine
from attestkit.serve.rpc.messages_kms import (
    PACKAGE,
    AppId,
    AppKeyResponse,
    GetAppKeyRequest,
    GetKmsKeyRequest,
    GetMetaResponse,
    GetTempCaCertResponse,
    KmsKeyResponse,
    PublicKeyResponse,
    SignCertRequest,
    SignCertResponse,
)
from attestkit.serve.rpc.service import Method, Service

T = TypeVar("T")

WORKERS: Final = 4
"""Threads that verify evidence and call the authorization."""

LIMIT: Final = 512
"""Limit of running and waiting requests; more are refused with 503."""

SECONDS: Final = 60.0
"""Time limit of a request, including its time in the queue."""

_FULL: Final = "simulated KMS: too many requests are waiting; retry later"
_LATE: Final = "simulated KMS: not finished within 60 s; retry later"

current_state: Final[ContextVar[KmsState]] = ContextVar("current_state")
"""State of the KMS that the connection of the current request shows."""


class NoContext:
    """Context of methods that need none."""

    executor: Executor | None = None
    signs_remotely = False

    async def on_device(
        self,
        work: Callable[[], T],
        *,
        writes: bool = False,  # noqa: ARG002
        signs: bool = False,  # noqa: ARG002
    ) -> T:
        """Run `work` at once: no method of the KMS uses a device."""
        return work()


class RequestQueue(NoContext):
    """A queue that runs requests in threads, in the order of their arrival.

    Args:
        threads: Threads of the queue; not shut down by this object.
    """

    def __init__(self, threads: JobThreads) -> None:
        self._queue = JobQueue(threads, LIMIT, _FULL)

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, run in a thread.

        Raises:
            KmsBusyError: If too many requests wait, or this one has waited too long.
        """
        try:
            return await self._queue.run(work, asyncio.get_running_loop().time() + SECONDS)
        except JobRefusedError as error:
            raise KmsBusyError(str(error)) from error
        except asyncio.TimeoutError:
            raise KmsBusyError(_LATE) from None


class KmsMethodContext(RequestQueue):
    """Context of the methods of the service KMS.

    Args:
        engine: Answers the requests.
        threads: As for `RequestQueue`.
    """

    def __init__(self, engine: ReleaseEngine, threads: JobThreads) -> None:
        super().__init__(threads)
        self.engine = engine


async def get_app_key(kms: KmsMethodContext, request: GetAppKeyRequest) -> AppKeyResponse:
    """Release the keys of the app whose evidence is in the client's certificate."""
    state, client = current_state.get(), current_client.get()
    return await kms.run(lambda: kms.engine.release_app_keys(state, client, *request))


async def get_kms_key(kms: KmsMethodContext, request: GetKmsKeyRequest) -> KmsKeyResponse:
    """Release the roots to another KMS, if its measurements are allowed."""
    state, client = current_state.get(), current_client.get()
    return await kms.run(lambda: kms.engine.release_roots(state, client, *request))


async def get_app_env_encrypt_pub_key(kms: KmsMethodContext, request: AppId) -> PublicKeyResponse:
    """Return the public key for an app's encrypted environment."""
    state = current_state.get()
    return await kms.run(lambda: kms.engine.get_env_key(state, *request))


async def get_meta(kms: KmsMethodContext, _: None) -> GetMetaResponse:
    """Describe the KMS."""
    state = current_state.get()
    return await kms.run(lambda: kms.engine.get_meta(state))


async def get_temp_ca_cert(kms: KmsMethodContext, _: None) -> GetTempCaCertResponse:
    """Return the temporary CA, under which clients certify their keys."""
    state = current_state.get()
    return await kms.run(lambda: kms.engine.get_temp_ca(state))


async def sign_cert(kms: KmsMethodContext, request: SignCertRequest) -> SignCertResponse:
    """Sign a certificate of the app whose evidence is in the request."""
    state = current_state.get()
    return await kms.run(lambda: kms.engine.sign_certificate(state, *request))


SERVICE: Final = Service(
    {
        "GetAppKey": Method(get_app_key, GetAppKeyRequest, waits=True),
        "GetKmsKey": Method(get_kms_key, GetKmsKeyRequest, waits=True),
        "GetAppEnvEncryptPubKey": Method(get_app_env_encrypt_pub_key, AppId, waits=True),
        "GetMeta": Method(get_meta, waits=True),
        "GetTempCaCert": Method(get_temp_ca_cert, waits=True),
        "SignCert": Method(sign_cert, SignCertRequest, waits=True),
    },
    mount="/prpc/",
    prefix="KMS.",
    name="KMS",
    package=PACKAGE,
)
"""The service on the HTTPS listener."""

ATTESTED_METHODS: Final = ("GetAppKey", "GetKmsKey", "SignCert")
"""Methods whose requests the metrics count."""
