"""The arguments of `Verifier`: their types, for functions that pass them on, and checks."""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

from attestkit._argument_checks import wrong_type
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy, require_policy

if TYPE_CHECKING:
    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.responses import Getter
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.roots import GpuRoots
    from attestkit.verifier.images.image_store import Images, ImageStore

_Path = str | os.PathLike[str]


class VerifierSettings(TypedDict, total=False):
    """Arguments of `Verifier` except `policy`; all are optional."""

    trust_anchor: bytes | str | SimulatedRoots | None
    collateral: "Collateral | _Path | None"
    pccs_url: str | None
    getter: "Getter | None"
    cache: "CollateralCache | None"
    clock: Callable[[], datetime]
    snp_certificates: Sequence[bytes]
    amd_crls: Sequence[bytes]
    images: "Images | ImageStore | None"
    ak_roots: Sequence[bytes]
    ak_certificates: Sequence[bytes]
    fetch_ak_certificates: bool
    gpu_roots: "GpuRoots | None"
    gpu_endorsements: "GpuEndorsements | _Path | None"


class VerifierOptions(VerifierSettings, total=False):
    """Arguments of `Verifier`; all are optional."""

    policy: "AppraisalPolicy | _Path | None"


def open_images(images: "Images | ImageStore | None") -> "ImageStore | None":
    """Return the image store for the argument `images`: itself, or a new one; None for None.

    Raises:
        ConfigError: If the folder of images cannot be read.
        UsageError: If `images` has the wrong type, or lists a hash that is not valid.
    """
    if images is None:
        return None
    from attestkit.verifier.images.image_store import ImageStore  # lazy: loads `measure`

    return images if isinstance(images, ImageStore) else ImageStore(images)


def open_policy(policy: AppraisalPolicy | _Path | None) -> AppraisalPolicy:
    """Return the policy for the argument `policy`: itself, a preset, a file's, or the default.

    A text that is the name of a preset is the preset, any other text the path of a file.

    Raises:
        ConfigError: If the file cannot be read or is malformed.
        UsageError: If the argument has the wrong type.
    """
    if policy is None:
        return AppraisalPolicy.default()
    if isinstance(policy, str) and policy in PRESETS:
        return PRESETS[policy]()
    if isinstance(policy, str | os.PathLike):
        return AppraisalPolicy.load(policy)
    return require_policy(policy)


def check_collateral(given: object) -> None:
    """Raise UsageError if `given`, an argument `collateral`, is neither a Collateral nor None."""
    if given is not None and not isinstance(given, Collateral):
        raise wrong_type("collateral", "a Collateral", given)


def simulated_gpu_roots(
    given: SimulatedRoots, ak_roots: Sequence[bytes], gpu_roots: "GpuRoots | None"
) -> "GpuRoots | None":
    """Return the roots of GPUs among those of a simulated machine; None if it has no GPUs.

    Raises:
        UsageError: If `ak_roots` or `gpu_roots` are given in addition.
    """
    if ak_roots or gpu_roots is not None:
        raise UsageError(
            "trust_anchor: SimulatedRoots have all roots; pass neither ak_roots nor gpu_roots",
            reason="conflict",
        )
    if given.gpu is None:
        return None
    from attestkit.gpu.roots import GpuRoots  # lazy: only with GPUs

    return GpuRoots(*given.gpu)
