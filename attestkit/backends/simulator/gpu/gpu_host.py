"""Access to the GPUs of a simulated machine: the part of a simulator that all platforms share."""

from typing import TYPE_CHECKING

from attestkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
    from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots
    from attestkit.gpu.driver.nvml import MachineTelemetry


class GpuHost:
    """A machine that may have GPUs."""

    _gpus: "SimulatedGpus | None" = None

    @property
    def gpus(self) -> "SimulatedGpus":
        """The GPUs and switches.

        Raises:
            UnsupportedError: If the machine has no GPU.
        """
        if self._gpus is None:
            text = "simulator: the machine has no GPU; open it with gpus=1"
            raise UnsupportedError(text, reason="feature")
        return self._gpus

    @property
    def has_gpus(self) -> bool:
        """Whether the machine has GPUs."""
        return self._gpus is not None

    @property
    def gpu_roots(self) -> "GpuRoots":
        """The trust anchors for verifiers of the GPUs' evidence; UnsupportedError without GPUs."""
        return self.gpus.roots

    def gpu_endorsements(
        self, now: float | None = None, *, nonce: bytes | None = None
    ) -> "GpuEndorsements":
        """Return RIMs and OCSP answers at a Unix time.

        Args:
            now: The time; None: at present.
            nonce: That of the evidence, 32 bytes, to add tokens of NRAS and its keys.

        Raises:
            UsageError: If the nonce has another size.
            UnsupportedError: If the machine has no GPU.
        """
        return self.gpus.endorsements(self.unix_time() if now is None else now, nonce)

    def gpu_evidence(self, nonce: bytes) -> "GpuEvidence":
        """Return evidence of all GPUs and switches over a nonce of 32 bytes.

        Raises:
            UsageError: If the nonce has another size.
            UnsupportedError: If the machine has no GPU.
        """
        return self.gpus.evidence(nonce)

    def gpu_boot_evidence(self) -> bytes:
        """Return the output of the GPU attestation at boot: JSON of `nvattest attest`.

        Raises:
            UnsupportedError: If the machine has no GPU.
        """
        return self.gpus.boot_output

    def gpu_telemetry(self) -> "MachineTelemetry":
        """Return the telemetry of the idle GPUs; UnsupportedError if the machine has none."""
        from attestkit.gpu.driver.nvml import MachineTelemetry  # lazy

        gpus = tuple([gpu.telemetry for gpu in self.gpus.gpus])
        return MachineTelemetry(gpus, enabled=True, ready=True)

    @property
    def _gpu_attestation(self) -> bytes | None:
        """The payload of the event about the GPU attestation at boot; None without GPUs."""
        if self._gpus is None:
            return None
        from attestkit.backends.simulator.gpu.boot_attestation import boot_payload  # lazy

        return boot_payload(self._gpus.boot_output, len(self._gpus.devices))

    def unix_time(self) -> float:
        """Return the Unix time of the simulated machine."""
        raise NotImplementedError  # of the simulator

    def _attach_gpus(self, seed: bytes, gpus: "int | GpuConfig | None", fault: str | None) -> None:
        """Add GPUs to the machine.

        Args:
            seed: 32 bytes.
            gpus: Their number or configuration; None: one if there is a fault of GPUs, else none.
            fault: Of the scenario.

        Raises:
            UsageError: If the configuration or the fault is invalid.
        """
        if gpus is None and fault is None:
            return
        # Lazy: most simulated machines have no GPU.
        from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
        from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus

        config = gpus if isinstance(gpus, GpuConfig) else GpuConfig(gpus)
        if fault is not None:
            if config.fault not in (None, fault):
                text = "gpus: the scenario has another fault; give only one"
                raise UsageError(text, reason="conflict")
            config = config.with_fault(fault)
        self._gpus = SimulatedGpus(seed, config)
