"""Root certificates of devices and of reference integrity manifests (RIMs)."""

from functools import cache
from typing import NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import (
    NVIDIA_DEVICE_ROOT,
    NVIDIA_RIM_ROOT,
    nvidia_roots,
)


class GpuRoots(NamedTuple):
    """The two trust anchors of GPU evidence, both certificates in DER."""

    device: bytes  # of the device chains
    rim: bytes  # of the signers of RIMs

    @staticmethod
    def nvidia() -> "GpuRoots":
        """Return NVIDIA's roots."""
        return _nvidia()

    @property
    def is_nvidia(self) -> bool:
        """Whether both keys are those of NVIDIA's roots.

        Raises:
            FormatError: If a root is malformed.
        """
        keys = [sha256(read_path_certificate(root).spki) for root in self]
        return keys == [NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT]


@cache
def _nvidia() -> GpuRoots:
    return GpuRoots(*nvidia_roots())
