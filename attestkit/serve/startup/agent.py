"""Start of an agent: its TEE or simulator, the app's keys, its listeners and the simulated KMS."""

import logging
import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from attestkit import backends
from attestkit.attester import Attester
from attestkit.backends.base import RecordedBackend, hosts_app
from attestkit.backends.environment import find_host_shared_folder
from attestkit.dstack.host_shared_folder import HostShared, read_app_compose, read_sys_config
from attestkit.factory import make_backend
from attestkit.keys import AppKeys
from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.config import option_values
from attestkit.serve.config.agent_settings import AGENT, KmsSettings, Settings
from attestkit.serve.endpoints import BoundAddresses
from attestkit.serve.http.sockets import FolderLock, make_folder, write_trust_anchor
from attestkit.serve.kms_service.kms_factory import serve_kms
from attestkit.serve.machine_info import DATA_DISKS
from attestkit.serve.startup.banner import ServerContext, announce
from attestkit.serve.systemd.notify_watchdog import ServiceEnvironment

if TYPE_CHECKING:
    from attestkit.kms.client import KmsClient
    from attestkit.serve.config.verifier_settings import VerifierSettings

_logger = logging.getLogger("attestkit.serve")


def serve_agent(
    settings: Settings, verifier: "VerifierSettings | None", shared: ServerContext
) -> None:
    """Serve an agent, and a verifier service beside it, until a signal arrives.

    `verifier` has the settings of the verifier service; None: it is off.

    Raises:
        UsageError: If an option, a variable of the service manager or an inherited socket is not
            valid, or a package of attestkit's extra `serve` is not installed.
        ConfigError: If a file or folder that an option names is not usable, or a socket cannot be
            created.
        BackendBusyError: If another server uses the folder, or another process an address.
        AttestKitError: If the TEE or the simulator cannot be opened, or the KMS releases no keys.
    """
    options = settings.options
    settings.addresses.check_limited()
    listeners = {name for name, _ in settings.addresses.listeners()}
    listeners |= set() if verifier is None else {"verifier"}
    service = ServiceEnvironment.from_environ(os.environ, listeners, watchdog=options.watchdog)
    make_folder(settings.folder, private=settings.private, ignored=settings.private)
    with ExitStack() as stack:
        stack.enter_context(closing(FolderLock(settings.folder)))
        seed = _load_seed(settings)  # once: it may be from a pipe
        if settings.simulated:
            attester = _start_simulator(settings, seed)
        else:
            attester = _open_tee(settings, stack)
        stack.enter_context(attester)
        kms = None
        if settings.kms is not None:
            kms = _boot_with_keys(attester, settings.kms, settings.app_id)
        elif options.measure_app and not settings.simulated:
            attester.measure_app(settings.app_id)
        lines = _describe_tee(settings, attester)
        served = _server_options(settings, shared, kms)
        addresses = settings.addresses
        if verifier is not None:
            addresses = addresses._replace(verifier=verifier.address)
            served = _with_verifier(served, verifier)
        environ, limits = os.environ, shared.limits
        kms_urls, kms_lines = stack.enter_context(
            serve_kms(settings, attester, seed, limits, environ)
        )

        def on_ready(ready: BoundAddresses) -> None:
            ready = ready._replace(addresses={**ready.addresses, **kms_urls})
            announce(shared, ready, [*lines, *kms_lines], attester, verifier)

        service.serve(attester, addresses, served, on_ready)


def _open_tee(settings: Settings, stack: ExitStack) -> Attester:
    """Open the named backend, or the detected hardware.

    A backend that has the app's files supplies them, unless options name some. Else they are those
    of the host-shared folder, replaced by the named ones; `stack` closes it.
    """
    if settings.backend is None:
        backend = backends.detect(leave_out=(AGENT,))()
    else:
        backend = make_backend(settings.backend, {})
    if hosts_app(backend) and not any(settings.files):
        return Attester(backend)
    host = HostShared(find_host_shared_folder(), **settings.files._asdict())
    return Attester(backend, stack.enter_context(closing(host)))


def _start_simulator(settings: Settings, seed: bytes | None) -> Attester:
    """Open the simulator with its seed (32 bytes), its state and the app's files.

    Without `seed` (None), it is that in the state folder. A guest of a cloud keeps no state but the
    seed: each start of the server is a boot.
    """
    import attestkit
    from attestkit.backends.simulator import Simulator

    make_folder(settings.state_folder, private=settings.private)
    is_rebooted = settings.options.reset
    state_folder: Path | None = settings.state_folder
    if _is_cloud(settings):
        seed = seed or _stored_seed(settings.state_folder)
        state_folder, is_rebooted = None, False
    app_keys, app_compose, sys_config = settings.files
    tee = attestkit.open(
        "simulator",
        seed=seed,
        state_dir=state_folder,
        app_compose=read_app_compose(app_compose).raw if app_compose else None,
        app_keys=AppKeys.load(app_keys) if app_keys else None,
        vm_config=read_sys_config(sys_config).vm_config if sys_config else None,
        app_id=settings.app_id,
        **settings.simulation,
    )
    if is_rebooted:
        assert isinstance(tee.backend, Simulator)
        tee.backend.reset()
    return tee


def _is_cloud(settings: Settings) -> bool:
    """Return whether the simulated guest is one of a cloud, or has a TPM alone."""
    from attestkit.backends.simulator.scenarios.registry import chosen_scenario

    chosen = settings.simulation.get
    return chosen_scenario(chosen("scenario"), chosen("platform")).platform not in {"tdx", "snp"}


def _stored_seed(folder: Path) -> bytes:
    """Return the seed in a state folder, created and stored at the first start."""
    from attestkit.backends.simulator.soft_td import StateFolder

    with closing(StateFolder(folder)) as state:
        return state.seed(os.urandom)


def _load_seed(settings: Settings) -> bytes | None:
    options = settings.options
    if options.seed is not None:
        return option_values.seed_from_hex(options.seed, options.named("seed"))
    path = options.path("seed_file")  # without one, the state folder has the seed
    return None if path is None else option_values.read_seed(path)


def _boot_with_keys(attester: Attester, kms: KmsSettings, app_id: bytes | None) -> "KmsClient":
    """Boot the app with keys of a KMS; return the client by which the KMS signs certificates.

    `app_id` has 20 bytes; None: that of the compose hash. The client trusts only the root keys of
    the KMS that released the app's keys, and tries its URL first.
    """
    from attestkit.kms.boot import boot_with_kms  # lazy: only with a KMS
    from attestkit.kms.client import KmsClient
    from attestkit.kms.https_call import TimeLimits
    from attestkit.kms.url import kms_base_url
    from attestkit.serve.services.certificate_issuer import SIGN_SECONDS

    booted = boot_with_kms(attester, kms.urls, roots=kms.load_roots(), app_id=app_id)
    attester.not_proven = booted.not_proven
    origin = "kept keys of the KMS" if booted.is_kept else "keys released by the KMS"
    _logger.info("%s %s", origin, booted.url)
    if booted.not_proven:
        _logger.warning("KMS: not proven by a pin: %s", ", ".join(booted.not_proven))
    others = [url for url in kms.urls if kms_base_url(url) != booted.url]
    urls = [*([booted.url] if booted.url else []), *others]
    return KmsClient(urls, roots=[booted.root], limits=TimeLimits(call=SIGN_SECONDS))


def _describe_tee(settings: Settings, attester: Attester) -> list[str]:
    """Return the first lines of the banner.

    The trust anchor of a simulator or of its recording is written to a file in the server's folder.
    """
    backend = attester.backend
    if isinstance(backend, RecordedBackend):
        replay = f"a replay of {backend.recorded}, which proves nothing"
        lines = [f"attestkit serves a TEE, SIMULATED: {replay}"]
        if backend.trust_anchor is not None:
            anchor = write_trust_anchor(settings.folder, backend.trust_anchor)
            lines.append(f"  trust anchor of the recording, for verifiers: {anchor}")
        return lines
    if not attester.simulated:
        return ["attestkit serves a TEE, on hardware"]
    from attestkit.backends.simulator import Simulator

    assert isinstance(backend, Simulator)
    anchor = write_trust_anchor(settings.folder, backend.trust_anchor)
    lines = [
        "attestkit serves a TEE, SIMULATED: its quotes prove nothing, its keys protect nothing",
        f"  trust anchor, for verifiers: {anchor}",
    ]
    if name := settings.simulation.get("scenario"):
        lines.append(f"  scenario: {name}")
    if armed := backend.faults.armed():
        lines.append(f"  faults: {' '.join(map(str, armed))}")
    return lines


def _server_options(
    settings: Settings, shared: ServerContext, kms: "KmsClient | None"
) -> ServerOptions:
    """Return the options of an agent without a verifier.

    `kms` is the client of the KMS that signs certificates, if any.
    """
    given = settings.options
    options = ServerOptions(
        ident=given.ident,
        data_disks=DATA_DISKS if given.data_disks is None else given.data_disks,
        limits=shared.limits,
        access_log=shared.access_log,
        docker=os.environ.get("DOCKER_HOST"),
        guest_api_shutdown=given.guest_api_shutdown,
        has_emit_event=settings.has_emit_event,
        kms=kms,
    )
    if given.auth_key is None and given.anonymous_scopes is None:
        return options
    from attestkit.serve.external_auth.settings import load_external_auth  # lazy: rarely used

    listening = settings.addresses.http is not None
    return options._replace(external_auth=load_external_auth(given, listening=listening))


def _with_verifier(options: ServerOptions, settings: "VerifierSettings") -> ServerOptions:
    """Add the verifier; its files are read now: the simulator has written its trust anchor."""
    from attestkit.serve.verifier_service.verifier_factory import load_ear_key, open_verifier

    return options._replace(verifier=open_verifier(settings), ear_key=load_ear_key(settings))
