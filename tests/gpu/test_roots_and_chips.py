"""NVIDIA's roots are the pinned ones, and chips are known by the names in certificates."""

from hashlib import sha256

import pytest

from attestkit import gpu
from attestkit._crypto.x509.cert_path import check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT, nvidia_roots
from attestkit.backends.simulator import simulated_roots
from attestkit.errors import SignatureError, UsageError
from attestkit.gpu import GpuRoots
from attestkit.gpu.architectures import Chip, chip_of, find_architecture
from tests.gpu.gpu_samples import read_pem
from tests.gpu.made_devices import NOW, make_device
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import needs_shared

# SHA-256 of the certificate and of its key, serial number.
DEVICE = (
    "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
    "a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4",
    0x2D3670B1CA100411C1FEC0E82A065B54,
)
RIM = (
    "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
    "dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3",
    0x45DAE3A00E5037BDDF875375ECB5E270,
)


@pytest.mark.parametrize(("at", "expected"), [(0, DEVICE), (1, RIM)])
def test_root_is_the_published_one(at: int, expected: tuple[str, str, int]) -> None:
    """Fingerprint, key and serial number are those of the specification; it signed itself."""
    der = nvidia_roots()[at]
    root = read_path_certificate(der)
    assert (sha256(der).hexdigest(), sha256(root.spki).hexdigest(), root.serial) == expected
    with raises(SignatureError, "cert_not_authority"):  # its own signature is verified before that
        check_path((("root", root), ("root", root)), NOW)


def test_pins_are_those_of_the_roots() -> None:
    """The pinned keys are those of the certificates."""
    assert (NVIDIA_DEVICE_ROOT.hex(), NVIDIA_RIM_ROOT.hex()) == (DEVICE[1], RIM[1])
    assert GpuRoots.nvidia() == nvidia_roots()
    assert GpuRoots.nvidia().is_nvidia
    device, rim = nvidia_roots()
    other = make_device().root
    for roots in (GpuRoots(other, rim), GpuRoots(device, other), GpuRoots(rim, device)):
        assert not roots.is_nvidia


@needs_shared
def test_roots_are_those_of_the_samples() -> None:
    """The shared data have the same roots."""
    assert nvidia_roots() == (*read_pem("roots/device-root.pem"), *read_pem("roots/rim-root.pem"))


@every_case(
    ("name", "expected"),
    [
        ("GH100 A01 GSP FMC LF", Chip("GH100", "HOPPER")),
        ("GH100 A01 GSP BROM", Chip("GH100", "HOPPER")),
        ("GB100 A01 GSP FMC LF", Chip("GB100", "BLACKWELL")),
        ("GB202 A01 GSP FMC LF", Chip("GB202", "BLACKWELL")),
        ("LS_10 A01 FSP FMC LF", Chip("LS10", "LS10")),
        ("LS10 A01 FSP FMC LF", Chip("LS10", "LS10")),
        ("GR100 A01 GSP FMC LF", None),
        ("GH1000 A01 GSP FMC LF", None),
        ("xGH100 A01", None),
        ("GH100", None),
        ("GH100 A01\n", None),
        ("GH100 " + "A" * 65, None),
        ("", None),
    ],
)
def test_chip_of_common_name(name: str, expected: Chip | None) -> None:
    """A chip is the first word of the common name, if it is known."""
    assert chip_of(name) == expected
    if expected is not None:
        assert expected.kind == ("switch" if expected.name == "LS10" else "gpu")


def test_architecture_of_word() -> None:
    """The words of evidence are known in any case, others are not."""
    for word in ("HOPPER", "Blackwell", "ls10"):
        assert find_architecture(word) == word.upper()
    for word in ("", "RUBIN", "HOPPER ", "LS_10"):
        assert find_architecture(word) is None


def test_public_names_are_loaded() -> None:
    """Every public name of the package is there."""
    for name in gpu.__all__:
        assert getattr(gpu, name).__name__ == name
    assert set(gpu.__all__) <= set(dir(gpu))


def test_simulated_roots_are_those_of_their_gpus() -> None:
    """SimulatedRoots stand for the roots of their GPUs, and are refused without any."""
    simulated = simulated_roots(bytes(32))
    assert simulated.gpu
    assert GpuRoots.select(simulated) == GpuRoots(*simulated.gpu)
    assert GpuRoots.select(None).is_nvidia
    with raises(UsageError, "not_applicable"):
        GpuRoots.select(simulated._replace(gpu=None))
