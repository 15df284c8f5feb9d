"""Root certificates of devices and of reference integrity manifests (RIMs)."""

from functools import cache, lru_cache
from typing import NamedTuple

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT, nvidia_roots
from attestkit.errors import FormatError, UsageError
from attestkit.simulated_roots import SimulatedRoots


class GpuRoots(NamedTuple):
    """The two trust anchors of GPU evidence, `device` and `rim`: certificates in DER."""

    device: bytes  # of the device chains
    rim: bytes  # of the signers of RIMs

    @staticmethod
    def nvidia() -> "GpuRoots":
        """Return NVIDIA's roots."""
        return _nvidia()

    @classmethod
    def from_pem(cls, data: bytes) -> "GpuRoots":
        """Parse two certificates in PEM: the root of devices, then that of RIMs.

        Raises:
            FormatError: If `data` is not two certificates in PEM.
        """
        try:
            found = split_pem(data.decode("ascii"))
        except UnicodeDecodeError as error:
            raise FormatError("GPU roots: must be ASCII text", reason="encoding") from error
        if len(found) != 2:
            message = f"GPU roots: must be 2 certificates, of devices and RIMs, not {len(found)}"
            raise FormatError(message, reason="wrong_size")
        for der in found:
            read_path_certificate(der)
        return cls(*found)

    @classmethod
    def select(cls, roots: "GpuRoots | SimulatedRoots | None") -> "GpuRoots":
        """Return the roots that a caller's argument means: NVIDIA's for None, else the given ones.

        Raises:
            UsageError: If `roots` has the wrong type, or is of a simulated machine without GPUs.
        """
        if roots is None:
            return _nvidia()
        if isinstance(roots, SimulatedRoots):
            if roots.gpu is None:
                message = "roots: the simulated machine has no GPUs; simulate one with GPUs"
                raise UsageError(message, reason="not_applicable")
            return cls(*roots.gpu)
        if not isinstance(roots, cls):
            raise wrong_type("roots", "GpuRoots or SimulatedRoots", roots)
        return roots

    @property
    def is_nvidia(self) -> bool:
        """Whether both keys are those of NVIDIA's roots.

        Raises:
            FormatError: If a root is malformed.
        """
        return _is_nvidia(self.device, self.rim)


# A verifier has the same roots in all its calls.
@lru_cache(maxsize=16)
def _is_nvidia(device: bytes, rim: bytes) -> bool:
    keys = [sha256(read_path_certificate(root).spki) for root in (device, rim)]
    return keys == [NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT]


@cache
def _nvidia() -> GpuRoots:
    return GpuRoots(*nvidia_roots())
