"""Guest of a cloud: TPM, metadata service, and the DMI table by which detection finds it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attestkit.backends.simulator.clouds.aws_snp import AwsSnpSimulator
from attestkit.backends.simulator.clouds.emulated_guest import boot_guest
from attestkit.backends.simulator.clouds.imds import ImdsServer
from attestkit.backends.simulator.clouds.tpm import TpmSimulator
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.platforms import CLOUDS
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.emulator.kernel_files import Tree, constant_file
from attestkit.emulator.kernel_version import EmulatedKernel
from attestkit.emulator.tpm_driver import add_tpm
from attestkit.errors import BackendError

if TYPE_CHECKING:
    from attestkit.backends.simulator.clouds.vtpm_guest import VtpmGuest


class CloudFiles:
    """Files of a guest of a cloud besides those of the hardware.

    Args:
        scenario: A scenario of one of `CLOUDS`.
        seed: 32 bytes, the seed of the hardware's certificates too.
        faults: The armed faults.
        now: Returns Unix time.
        random: Returns a number of random bytes.
        metadata_address: IPv4 address and port of the metadata service, if the cloud has one;
            port 0: a free one.

    Raises:
        BackendError: If the address cannot be bound.
        UsageError: If the scenario needs the simulator's own backend.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: bytes,
        *,
        faults: Faults,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        metadata_address: tuple[str, int],
    ) -> None:
        self.platform: str = scenario.platform
        self._faults = faults
        self._imds: ImdsServer | None = None
        self.simulator: VtpmGuest = boot_guest(
            scenario, seed, faults=faults, now=now, random=random
        )
        if (respond := self.simulator.metadata_service) is not None:
            try:
                self._imds = ImdsServer(respond, metadata_address)
            except OSError as error:
                self.close()
                host, port = metadata_address
                text = f"metadata service: cannot listen on {host}:{port}: {error.strerror}"
                raise BackendError(text, reason="io_error") from error

    @property
    def has_intel_collateral(self) -> bool:
        """Whether its evidence has a TDX quote."""
        return self.platform.endswith("-tdx")

    def add_files(self, tree: Tree, release: EmulatedKernel) -> None:
        """Add its files to the tree of the machine."""
        faults = self._faults
        for name, text in CLOUDS[self.platform].dmi.items():
            tree.add(f"/sys/class/dmi/id/{name}", constant_file("", faults, f"{text}\n".encode()))
        if isinstance(self.simulator, TpmSimulator):
            certificate = constant_file("", faults, self.simulator.ak_certificate)
            tree.add("/attestkit/ak-certificate.der", certificate)
        if isinstance(self.simulator, AwsSnpSimulator):  # whose other trust anchor is AMD's
            root = constant_file("", faults, self.simulator.roots.nitro or b"")
            tree.add("/attestkit/nitro-trust-anchor.der", root)
        add_tpm(tree, self.simulator.vtpm, release, faults)
        if self._imds is not None:
            url = f"{self._imds.url}\n".encode()
            tree.add("/attestkit/imds-url", constant_file("", faults, url))

    def close(self) -> None:
        """Stop the metadata service and the TPM."""
        if self._imds is not None:
            self._imds.close()
        self.simulator.close()
