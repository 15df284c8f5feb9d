"""The simulated KMS of a server, from its options."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from attestkit.errors import UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.config.option_values import prefix_errors, read_policy
from attestkit.serve.config.options import KMS_OPTIONS

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.backends.simulator.faults.kms_faults import KmsFaults
    from attestkit.serve.config.agent_settings import Settings
    from attestkit.serve.config.options import Options
    from attestkit.serve.kms_service.simulated_kms import SimulatedKms
    from attestkit.verifier import AppraisalPolicy

TOKEN_VARIABLE: Final = "DSTACK_KMS_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable with the token of the listener for administration."""

_ROOT_FILE: Final = "kms-root.json"
_AFTER_SETUP: Final = ", after Bootstrap or Onboard, and /finish"


@contextmanager
def serve_kms(
    settings: "Settings",
    attester: "Attester",
    seed: bytes | None,
    limits: Limits,
    environ: Mapping[str, str],
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Context manager: serve the simulated KMS of a simulator until exit.

    The KMS verifies evidence under the simulator's root, and has evidence of the simulator in its
    own certificate. The root keys, for clients to pin, are written to `kms-root.json` in the
    server's folder.

    Args:
        settings: Options of the server, and its folders.
        attester: The simulator.
        seed: Seed of the simulator, from which the KMS's keys are derived too; None: they are kept
            in `kms` in the state folder.
        limits: Limits of the listeners.
        environ: Environment variables.

    Yields:
        The URLs of the KMS's listeners by name, and lines for the banner; both are empty if the
        KMS is off.

    Raises:
        UsageError: If an option is not valid, or requires an option that is not given.
        ConfigError: If a file or the folder of the keys is not usable, or an option from the
            configuration file is not valid.
        BackendBusyError: If another process listens on an address.
    """
    options = settings.options
    if options.address("kms") is None:
        if name := options.first_given(KMS_OPTIONS[1:]):
            raise options.error(name, "requires --kms HOST:PORT")
        yield {}, []
        return
    path = settings.folder / _ROOT_FILE
    with _start_kms(settings, attester, seed, limits, environ) as kms:
        addresses = {"kms": kms.url, "kms_admin": kms.admin_url}
        lines = [
            f"  simulated KMS, whose keys protect nothing: {kms.url}",
            f"  simulated roots, for clients to pin: {path}{'' if kms.has_keys else _AFTER_SETUP}",
        ]
        yield {name: url for name, url in addresses.items() if url}, lines


def _start_kms(
    settings: "Settings",
    attester: "Attester",
    seed: bytes | None,
    limits: Limits,
    environ: Mapping[str, str],
) -> "SimulatedKms":
    from attestkit.serve.kms_service.simulated_kms import SimulatedKms  # lazy: rarely needed

    options, token = settings.options, environ.get(TOKEN_VARIABLE, "")
    address, admin = options.address("kms"), options.address("kms_admin")
    assert address is not None
    if admin is not None and not token:
        raise options.error("kms_admin", f"requires a token in ${TOKEN_VARIABLE}")
    if options.kms_onboarding and seed is not None:
        raise options.error("kms_onboarding", "excludes a seed, which gives the keys; drop one")
    domain, faults, policies = _read_domain(options), _read_faults(options), _read_policies(options)
    with prefix_errors("--kms:"):
        return SimulatedKms(
            attester.verifier(),
            auth=None if policies is not None else options.kms_auth,
            policies=policies,
            seed=seed,
            state_dir=None if seed is not None else settings.state_folder / "kms",
            onboarding=options.kms_onboarding,
            domain=domain,
            address=address,
            admin=admin,
            admin_token=token,
            attester=attester,
            faults=faults,
            limits=limits,
            on_keys=lambda root: root.save(settings.folder / _ROOT_FILE),
        )


def _read_domain(options: "Options") -> str:
    from attestkit.kms.release.certificates import check_domain  # lazy, as all of the KMS
    from attestkit.serve.kms_service.simulated_kms import DOMAIN

    domain = options.kms_domain or DOMAIN
    with prefix_errors(f"{options.named('kms_domain')}:"):
        check_domain(domain)
    return domain


def _read_faults(options: "Options") -> "KmsFaults":
    from attestkit.backends.simulator.faults.kms_faults import KmsFaults

    with prefix_errors(f"{options.named('kms_fault')}:"):
        return KmsFaults.of(options.kms_fault)


def _read_policies(options: "Options") -> "tuple[AppraisalPolicy, ...] | None":
    """Return the policies of the apps that get keys; None without the option."""
    if options.kms_policy is None:
        return None
    if options.kms_auth is not None:
        raise options.error("kms_policy", f"excludes {options.named('kms_auth')}; give one of them")
    found = []
    for text in options.kms_policy:
        prefix = options.prefix("kms_policy")
        policy = read_policy(prefix, text)
        if policy.app_id is None:
            message = f"{prefix} {text}: must have the rule app_id; add the app that gets its keys"
            raise UsageError(message, reason="missing")
        found.append(policy)
    return tuple(found)
