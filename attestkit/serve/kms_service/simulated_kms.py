"""A simulated KMS in a thread of the program, such as a test."""

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, final

from attestkit._argument_checks import needs_extra, wrong_type
from attestkit._system.clock import current_time
from attestkit.backends.base import SimulatedBackend
from attestkit.backends.simulator.faults.kms_faults import ROLLOVER, KmsFaults
from attestkit.errors import UsageError
from attestkit.kms.release import authorization
from attestkit.kms.release.auth_simple import AuthSimpleFile
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.release.state_folder import KmsState, KmsStateFolder, create_state
from attestkit.kms.root import KmsRoot
from attestkit.serve.config.limits import Limits
from attestkit.serve.config.option_values import Address
from attestkit.serve.event_loop_thread import EventLoopThread
from attestkit.serve.http.sockets import bind_tcp
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service.request_queue import WORKERS
from attestkit.serve.kms_service.server_identity import KmsParts, ServerIdentity
from attestkit.serve.lazy_import import require_packages
from attestkit.simulated_roots import SimulatedRoots

with needs_extra("simulated KMS", "serve"):
    from attestkit.serve.kms_service.kms_server import KmsServer, KmsSockets

if TYPE_CHECKING:
    from typing_extensions import Self

    from attestkit.attester import Attester
    from attestkit.backends.simulator.faults.fault_specs import Fault, FaultsLike
    from attestkit.verifier import AppraisalPolicy, Verifier


class KeySource:
    """Source of a KMS's root keys: at most one of the arguments; without any, new keys in memory.

    Args:
        seed: 32 bytes from which all keys are derived.
        roots: The keys themselves.
        state_dir: Folder in which the keys are stored; it is locked until `close`.

    Attributes:
        folder: The open folder `state_dir`; None without one.

    Raises:
        UsageError: If more than one argument is given.
        ConfigError: If the folder is not usable.
    """

    def __init__(
        self, seed: bytes | None, roots: KmsRoots | None, state_dir: str | os.PathLike[str] | None
    ) -> None:
        given = [name for name, value in (("seed", seed), ("roots", roots)) if value is not None]
        if len(given) > 1 or (given and state_dir is not None):
            text = "pass only one of seed, roots and state_dir"
            raise UsageError(
                f"{given[0]}: conflicts with another source of keys; {text}", reason="conflict"
            )
        self._seed, self._roots = seed, roots
        self.folder: KmsStateFolder | None = None
        if state_dir is not None:
            self.folder = KmsStateFolder(Path(state_dir))

    @property
    def has_keys(self) -> bool:
        """Whether the keys exist already, or follow from the seed."""
        if self.folder is not None:
            return not self.folder.is_empty
        return self._seed is not None or self._roots is not None

    def make_state(self, domain: str, now: int) -> KmsState:
        """Return the keys, created if there are none, with certificates for a domain.

        `domain` is a DNS name or IP address; `now` is the time in Unix seconds, on which the
        validity of the certificates depends.

        Raises:
            UsageError: If the seed does not have 32 bytes, or the domain is not valid.
            ConfigError: If a file in the folder is missing, malformed or cannot be written.
        """
        if self.folder is not None:
            return self.folder.load_or_create(domain, now)
        roots = self._roots
        if roots is None:
            roots = KmsRoots.generate() if self._seed is None else KmsRoots.from_seed(self._seed)
        return create_state(roots, domain, now)

    def close(self) -> None:
        """Unlock the folder."""
        if self.folder is not None:
            self.folder.close()


AuthorizationLike: TypeAlias = (
    authorization.KmsAuthorization
    | str
    | os.PathLike[str]
    | Callable[[authorization.BootInfo], authorization.Decision]
    | None
)
"""What decides about verified guests; see `SimulatedKms`."""

DOMAIN: Final = "localhost"
_AT_ONCE: Final = Limits(drain_seconds=0)


@final
class SimulatedKms:
    """A KMS for tests and development, which serves HTTPS in a thread. A context manager.

    Its keys protect nothing: it runs outside a TEE.

        with SimulatedKms(tee.verifier()) as kms:
            keys = KmsClient(kms.url, roots=[kms.root], attester=tee.attester).get_app_keys()

    Args:
        verifier: Verifies the evidence of guests, with the trust anchors, collateral and policy.
        auth: Decides about guests whose evidence was verified: "dev" or None allows all; the path
            of a file of auth-simple; the http or https URL of a webhook; a function that takes
            `BootInfo` and returns `Decision`; a `KmsAuthorization`.
        policies: Instead of `auth`: one appraisal policy, with an app id, for each app that gets
            keys.
        kms_policy: With `policies`: the policy for another KMS that requests the roots.
        seed: 32 bytes from which all keys are derived. None: random keys, or those in `state_dir`.
        state_dir: Folder in which the keys are stored; only without `seed`.
        roots: The root keys; only without `seed` and `state_dir`.
        onboarding: Whether a KMS without keys waits for Bootstrap or Onboard over plain HTTP,
            instead of creating them.
        admin: Host and port of the listener for administration; None: off.
        admin_token: Token that every request for administration needs, 16 to 4096 printable ASCII
            characters.
        domain: DNS name or IP address in the server's certificate.
        address: Host and port to listen on; port 0 selects a free one.
        attester: Produces the evidence in the certificate of the KMS; None: it has none.
        image_verify: Whether the OS image must be verified; otherwise the hash that the guest
            claims is used.
        allow_any_upgrade: Reported by GetMeta, without effect.
        enforce_self_authorization: Whether the KMS releases nothing unless `auth` allows the KMS
            itself; requires `attester`.
        released_platforms: Of dstack-amd-sev-snp and dstack-aws-nitro-tpm, those whose guests get
            keys; guests of other platforms need not be enabled.
        faults: Faults to inject, such as "kms_refuses:2". Not `kms_rollover` with `state_dir`,
            which would keep the old roots.
        limits: Limits of each listener; by default, `close` does not wait for pending requests.
        thread: Thread with the event loop; None: one for this object.
        now: Returns the time in seconds since 1970. TLS uses the system's clock.
        on_keys: Called with the root keys before HTTPS is served, which is after the setup.

    Attributes:
        faults: The faults that are armed.
        admin_url: URL for administration; empty if it is off.

    Raises:
        UsageError: If an argument is invalid or conflicts with another, or a package of attestkit's
            extra `serve` is not installed.
        ConfigError: If the file of auth-simple, or the folder, is not usable.
        BackendBusyError: If another process listens on the address.
        AttestKitError: If `attester` returns no evidence for the certificate.
    """

    def __init__(
        self,
        verifier: "Verifier",
        *,
        auth: AuthorizationLike = None,
        policies: "Collection[AppraisalPolicy] | None" = None,
        kms_policy: "AppraisalPolicy | None" = None,
        seed: bytes | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        roots: KmsRoots | None = None,
        onboarding: bool = False,
        admin: tuple[str, int] | None = None,
        admin_token: str = "",
        domain: str = DOMAIN,
        address: tuple[str, int] = ("127.0.0.1", 0),
        attester: "Attester | None" = None,
        image_verify: bool = True,
        allow_any_upgrade: bool = False,
        enforce_self_authorization: bool = False,
        released_platforms: Collection[str] = (),
        faults: "FaultsLike" = None,
        limits: Limits = _AT_ONCE,
        thread: EventLoopThread | None = None,
        now: Callable[[], float] = current_time,
        on_keys: Callable[[KmsRoot], object] | None = None,
    ) -> None:
        if not (hasattr(verifier, "verify") and hasattr(verifier, "policy")):
            raise wrong_type("verifier", "a Verifier", verifier)
        require_packages(["kms"])
        self.faults: KmsFaults = KmsFaults.of(faults)
        if state_dir is not None:
            self.faults.watch(self._check_fault)
        parts = KmsParts(
            verifier,
            _make_authorization(auth, policies, kms_policy),
            attester,
            self.faults,
            now,
            on_keys,
            allow_any_upgrade=allow_any_upgrade,
            use_claimed_image=not image_verify,
            enforce_self_authorization=enforce_self_authorization,
            released_platforms=frozenset(released_platforms),
        )
        self._process, self._domain, self._now = os.getpid(), domain, now
        self._attester = attester
        with ExitStack() as stack:
            keys = stack.enter_context(closing(KeySource(seed, roots, state_dir)))
            sockets = _bind(address, admin, stack)
            self._port = sockets.port
            self.admin_url: str = sockets.admin_url
            threads = stack.enter_context(JobThreads(WORKERS, "kms"))
            self._server = KmsServer(parts, sockets, limits, threads, admin_token)
            thread = thread or stack.enter_context(EventLoopThread())
            self._start(keys, thread, stack, onboarding=onboarding)
            self._stack = stack.pop_all()

    def _start(
        self, keys: KeySource, thread: EventLoopThread, stack: ExitStack, *, onboarding: bool
    ) -> None:
        """Serve HTTPS until the end of `stack`.

        With `onboarding`, and if there are no keys, serve the setup over HTTP first.
        """
        stack.callback(thread.run, self._server.stop)
        if onboarding and not keys.has_keys:
            thread.run(lambda: self._server.serve_onboarding(keys.folder))
        else:
            state = keys.make_state(self._domain, int(self._now()))
            thread.run(lambda: self._server.serve(state))

    @property
    def url(self) -> str:
        """The URL for clients: https, during the setup http."""
        scheme = "https" if self.has_keys else "http"
        identity = self._server.identity
        domain = self._domain if identity is None else identity.state.domain
        return f"{scheme}://{Address(domain, self._port)}"

    @property
    def has_keys(self) -> bool:
        """Whether HTTPS is served: there are keys, and the setup is finished."""
        return self._server.has_keys.is_set()

    def wait_for_keys(self, seconds: float) -> bool:
        """Wait until the setup is finished and HTTPS is served; return whether it is.

        `seconds` is the time limit.
        """
        return self._server.has_keys.wait(seconds)

    @property
    def _identity(self) -> ServerIdentity:
        if self._server.identity is None:
            text = "simulated KMS: has no keys yet; finish its setup"
            raise UsageError(text, reason="not_ready")
        return self._server.identity

    @property
    def root(self) -> KmsRoot:
        """The root keys, for clients to pin. The fault `kms_rollover` changes them.

        Raises:
            UsageError: If the setup, which creates the keys, is not finished.
        """
        return self._identity.state.roots.public_root

    @property
    def roots(self) -> SimulatedRoots:
        """The trust anchors of the attester, with the root keys of this KMS.

        Raises:
            UsageError: If the KMS has no attester, or one on hardware: pin `root` then; or if the
                setup is not finished.
        """
        backend: object = None if self._attester is None else self._attester.backend
        if not isinstance(backend, SimulatedBackend):
            text = "simulated KMS: roots: requires a simulated attester; pin root"
            raise UsageError(text, reason="missing")
        found = self.root
        assert found.k256_public_key is not None
        return backend.roots._replace(kms=(found.ca_spki, found.k256_public_key))

    @property
    def root_cert(self) -> str:
        """The certificate of the root CA in PEM.

        Raises:
            UsageError: If the setup, which creates the keys, is not finished.
        """
        return self._identity.state.root_pem

    def arm(self, faults: str) -> None:
        """Inject faults from now on, such as "kms_closes:2".

        Raises:
            UsageError: If a fault is unknown, or conflicts with `state_dir`; none is armed then.
        """
        self.faults.arm(faults)

    def _check_fault(self, fault: "Fault") -> None:
        """Raise UsageError for a fault that would replace roots which a folder stores."""
        if fault.operation == ROLLOVER:
            text = "conflicts with state_dir, which would keep the old roots; use a seed"
            raise UsageError(f"fault {fault.name}: {text}", reason="conflict")

    def close(self) -> None:
        """Stop the server. Idempotent; in a forked process it has no effect."""
        if self._process == os.getpid():
            self._stack.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SimulatedKms({self.url})"


def _bind(address: tuple[str, int], admin: tuple[str, int] | None, stack: ExitStack) -> KmsSockets:
    rpc = stack.enter_context(bind_tcp("--kms", Address(*address)))
    if admin is None:
        return KmsSockets(rpc)
    return KmsSockets(rpc, stack.enter_context(bind_tcp("admin", Address(*admin))))


def _make_authorization(
    auth: AuthorizationLike,
    policies: "Collection[AppraisalPolicy] | None",
    kms_policy: "AppraisalPolicy | None",
) -> authorization.KmsAuthorization:
    if policies is not None:
        if auth is not None:
            raise UsageError("auth: conflicts with policies; pass only one", reason="conflict")
        return authorization.PolicyAuthorization(policies, kms_policy=kms_policy)
    if kms_policy is not None:
        raise UsageError("kms_policy: requires policies; pass both", reason="missing")
    if auth is None or auth == "dev":
        return authorization.DevAuthorization()
    if isinstance(auth, authorization.KmsAuthorization):
        return auth
    if isinstance(auth, str) and auth.startswith(("http://", "https://")):
        from attestkit.kms.release.webhook import AuthWebhook  # lazy: an HTTP client

        return AuthWebhook(auth)
    if isinstance(auth, (str, os.PathLike)):
        return AuthSimpleFile(auth)
    if callable(auth):
        return authorization.FunctionAuthorization(auth)
    raise wrong_type("auth", "dev, a path, a URL, a function or a KmsAuthorization", auth)
