"""The Verifier and the signing key of the verifier service, from its settings."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.pccs_client import base_url
from attestkit.dstack.host_shared_folder import read_file
from attestkit.errors import CollateralError, ConfigError, FormatError, UsageError
from attestkit.serve.config.option_values import prefix_errors, read_policy
from attestkit.serve.verifier_service.ear import read_ear_key
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.authenticators import Authenticators
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.verifier import Verifier

if TYPE_CHECKING:
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.roots import GpuRoots
    from attestkit.serve.config.options import Options
    from attestkit.serve.config.verifier_settings import VerifierSettings
    from attestkit.verifier.ear.signed_token import EarKey


def open_verifier(settings: "VerifierSettings") -> "Verifier":
    """Build the Verifier. Without a policy, TCB status is reported but not enforced.

    Raises:
        ConfigError: If a file or folder that an option names is unreadable or malformed.
        UsageError: If the URL of the PCCS is not valid.
    """
    options, cache = settings.options, None
    if settings.pccs_url is not None:
        source = options.sources.get("verifier_pccs", "--verifier-pccs or $PCCS_URL")
        with prefix_errors(f"{source}:"):
            base_url(settings.pccs_url)  # fail at startup instead of at the first request
    if (folder := options.path("verifier_cache")) is not None:
        with prefix_errors(options.prefix("verifier_cache")):
            cache = CollateralCache(folder)
    policy = AppraisalPolicy.development()
    if options.verifier_policy is not None:
        policy = read_policy(options.prefix("verifier_policy"), options.verifier_policy)
    images = None
    if (folder := options.path("images")) is not None:
        from attestkit.verifier.images.image_store import ImageStore  # lazy: loads `measure`

        with prefix_errors(options.prefix("images")):
            images = ImageStore(folder)
    files = {
        name: _read_option_file(options, field, parse) for name, (field, parse) in _FILES.items()
    }
    return Verifier(
        pccs_url=settings.pccs_url,
        policy=policy,
        cache=cache,
        images=images,
        fetch_ak_certificates=options.verifier_fetch_ak_certificates,
        **{name: found for name, found in files.items() if found is not None},
    )


def load_ear_key(settings: "VerifierSettings") -> "EarKey | None":
    """Return the key that signs attestation results; None if no option names one.

    Raises:
        ConfigError: If its file cannot be read, is accessible to other users, or has no such key.
    """
    if (path := settings.options.path("ear_key")) is None:
        return None
    return read_ear_key(settings.options.prefix("ear_key"), path)


def _trust_anchor(data: bytes) -> bytes | SimulatedRoots | None:
    """Return the trust anchor in `data`, the content of a file.

    It is a root certificate, DER or PEM, or JSON of SimulatedRoots.
    """
    if data.lstrip().startswith(b"{"):
        return SimulatedRoots.from_json(data)
    return Authenticators(data).trust_anchor


def _amd_certificates(data: bytes) -> tuple[bytes, ...]:
    """Return `(data,)`: the content of a file with AMD certificates, DER or PEM.

    FormatError if it has none, or one is malformed.
    """
    from attestkit.verifier.platforms.snp.chain import read_endorsements  # lazy: loads X.509

    if not read_endorsements([data]):
        raise FormatError("must have a certificate of AMD", reason="missing")
    return (data,)


def _amd_crls(data: bytes) -> tuple[bytes, ...]:
    """Return `(data,)`: the content of a file with CRLs of AMD, after checking their encoding."""
    from attestkit._crypto.x509.crl import read_amd_crls  # lazy: loads X.509

    read_amd_crls(data)
    return (data,)


def _ak_certificates(data: bytes) -> tuple[bytes, ...]:
    """Return `(data,)`: the content of a file with certificates and CRLs of TPM keys.

    Their encoding is checked.
    """
    from attestkit.verifier.platforms.vtpm.ak_chain import AkChains  # lazy: loads X.509

    AkChains(certificates=[data])
    return (data,)


def _ak_roots(data: bytes) -> tuple[bytes, ...]:
    """Return `(data,)`: the content of a file with roots of TPM keys, whose encoding is checked."""
    from attestkit.verifier.platforms.vtpm.ak_chain import AkChains  # lazy: loads X.509

    AkChains(roots=[data])
    return (data,)


def _gpu_roots(data: bytes) -> "GpuRoots":
    from attestkit.gpu.roots import GpuRoots  # lazy: only with GPUs

    return GpuRoots.from_pem(data)


def _gpu_endorsements(data: bytes) -> "GpuEndorsements":
    from attestkit.gpu.endorsements import GpuEndorsements  # lazy: only with GPUs

    return GpuEndorsements.from_json(data)


# Arguments of Verifier that are in files: the option, and the reader of the content.
_FILES: Final[Mapping[str, tuple[str, Callable[[bytes], Any]]]] = {
    "trust_anchor": ("trust_anchor", _trust_anchor),
    "collateral": ("verifier_collateral", Collateral.from_json),
    "snp_certificates": ("verifier_certificates", _amd_certificates),
    "amd_crls": ("verifier_crls", _amd_crls),
    "ak_certificates": ("verifier_ak_certificates", _ak_certificates),
    "ak_roots": ("verifier_ak_roots", _ak_roots),
    "gpu_roots": ("verifier_gpu_roots", _gpu_roots),
    "gpu_endorsements": ("verifier_gpu_endorsements", _gpu_endorsements),
}


def _read_option_file(options: "Options", field: str, parse: Callable[[bytes], Any]) -> Any:  # noqa: ANN401
    """Return the content, parsed by `parse`, of the file of the option `field`; None if not given.

    Raises:
        ConfigError: If the file cannot be read or parsed; the text names the option.
    """
    if (path := options.path(field)) is None:
        return None
    with prefix_errors(options.prefix(field)):
        data = read_file(path)
        try:
            return parse(data)
        except (CollateralError, FormatError) as error:
            raise ConfigError(f"{path}: {error}", reason="syntax") from error
        except UsageError as error:
            raise ConfigError(f"{path}: {error}", reason="wrong_value") from error
