"""The simulated GPUs and switches of a machine: evidence, endorsements, roots."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from attestkit._crypto.hashes import hkdf_sha256
from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.gpu import gpu_pki
from attestkit.backends.simulator.gpu.boot_attestation import boot_output
from attestkit.backends.simulator.gpu.deviations import OcspFault
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_reports import MODELS, PROTECTED_SWITCHES, DeviceModel
from attestkit.backends.simulator.gpu.nras_service import SimulatedNras
from attestkit.backends.simulator.gpu.rim_writer import RimContent, RimResource, sign_rim
from attestkit.backends.simulator.gpu.simulated_device import (
    MachineFacts,
    SimulatedDevice,
    encode_chain,
    golden_measurement,
)
from attestkit.gpu import DeviceEvidence, GpuEndorsements, GpuEvidence, GpuRoots
from attestkit.gpu.nras.client import encode_request

if TYPE_CHECKING:
    from attestkit.gpu.architectures import Architecture

_SPT, _MPT, _PROTECTED = 0, 1, 2  # values of the feature field


class SimulatedGpus:
    """GPUs, and in protected-PCIe mode switches, of one machine.

    Attributes:
        config: Number and kind of the devices, and their fault.
        devices: The GPUs, then the switches.
    """

    def __init__(self, seed: bytes, config: GpuConfig | int = 1) -> None:
        """Derive the keys and issue the certificates.

        Args:
            seed: 32 bytes from which all keys are derived.
            config: The devices, or the number of Hopper GPUs.

        Raises:
            UsageError: If an argument is invalid.
        """
        check_bytes("seed", seed, 32)
        self._seed = seed
        self.config: GpuConfig = config if isinstance(config, GpuConfig) else GpuConfig(config)
        self._fault = self.config.deviation
        self._pki = gpu_pki.make_gpu_pki(seed)
        self._other_pki = gpu_pki.make_gpu_pki(seed, "other/")
        self.devices: tuple[SimulatedDevice, ...] = self._make_devices()
        self._answers: tuple[int | None, tuple[bytes, ...]] = None, ()  # of an hour

    def derive(self, label: str, length: int) -> bytes:
        """Return `length` bytes derived from the seed and `label` (HKDF-SHA256)."""
        return hkdf_sha256(self._seed, label.encode(), length, gpu_pki.SALT)

    @property
    def gpus(self) -> tuple[SimulatedDevice, ...]:
        """The GPUs."""
        return tuple([device for device in self.devices if not device.is_switch])

    @property
    def switches(self) -> tuple[SimulatedDevice, ...]:
        """The switches."""
        return tuple([device for device in self.devices if device.is_switch])

    @property
    def roots(self) -> GpuRoots:
        """The trust anchors for verifiers of this evidence."""
        return GpuRoots(*self._pki.roots)

    # -- evidence ------------------------------------------------------------------------------

    def evidence(self, nonce: bytes) -> GpuEvidence:
        """Return evidence of all devices over a nonce of 32 bytes.

        Raises:
            UsageError: If the nonce is not 32 bytes.
        """
        check_bytes("nonce", nonce, 32)
        found = [self._device_evidence(device, nonce) for device in self.devices]
        if self._fault.machine == "switch-missing":
            found = found[:-1]
        elif self._fault.machine == "device-twice":
            found[-1] = found[0]
        if self._fault.padding:
            return _pad_first(found, self._fault.padding)
        return GpuEvidence(tuple(found))

    def report(self, device: SimulatedDevice, nonce: bytes) -> bytes:
        """Return a report of a device over a nonce of 32 bytes, altered by the configured fault.

        Raises:
            UsageError: If the nonce is not 32 bytes.
        """
        check_bytes("nonce", nonce, 32)
        content, first, fault = device.content(nonce), device is self.devices[0], self._fault
        if fault.machine == "nonces-mixed" and device is self.devices[-1]:
            content = content._replace(nonce=bytes(32))
        if first and fault.content is not None:
            content = fault.content(content)
        other = first and fault.other_key
        key = self._pki.device("gpu/other", device.model).key if other else device.device.key
        report = content.sign(key)
        return fault.report(report) if first and fault.report is not None else report

    def chain(self, device: SimulatedDevice) -> tuple[bytes, ...]:
        """Return the certificates (DER) of a device, leaf first, altered by the fault."""
        chain = device.device.chain
        if device is self.devices[0] and self._fault.chain is not None:
            return self._fault.chain(chain)
        return chain

    def chain_pem(self, device: SimulatedDevice) -> bytes:
        """Return a device's certificates as the driver does: PEM, NUL-padded by a fault."""
        padding = self._fault.padding if device is self.devices[0] else 0
        return encode_chain(self.chain(device)) + bytes(padding)

    def _device_evidence(self, device: SimulatedDevice, nonce: bytes) -> DeviceEvidence:
        report, chain = self.report(device, nonce), self.chain(device)
        return DeviceEvidence(device.model.architecture, report, chain, nonce)

    @cached_property
    def boot_output(self) -> bytes:
        """The output (JSON) of the GPU attestation at boot, made from devices without faults."""
        nonce = self.derive("boot-nonce", 32)
        found = [
            DeviceEvidence(
                device.model.architecture, device.report(nonce), device.device.chain, nonce
            )
            for device in self.devices
        ]
        return boot_output(found)

    # -- endorsements --------------------------------------------------------------------------

    @cached_property
    def rims(self) -> Mapping[str, bytes]:
        """The signed RIMs (XML) of the devices' models, by `driver_rim_id` and `vbios_rim_id`."""
        models = {device.model for device in self.devices}
        found: dict[str, bytes] = {}
        for model in sorted(models):
            if model.driver_rim_id is not None:
                found[model.driver_rim_id] = self._driver_rim(model)
            found[model.vbios_rim_id] = self._vbios_rim(model)
        return found

    @cached_property
    def ocsp(self) -> gpu_pki.SimulatedOcsp:
        """The OCSP responder for the certificates of the devices and of the RIM signers."""
        return gpu_pki.SimulatedOcsp(self._device_pki, self._served())

    def ocsp_answers(self, now: float) -> tuple[bytes, ...]:
        """Return the OCSP answers (DER) about all certificates, valid at the Unix time `now`."""
        hour = int(now) // 3600
        if self._answers[0] != hour:
            moment = datetime.fromtimestamp(hour * 3600, timezone.utc)
            self._answers = hour, self.ocsp.answers(moment)
        return self._answers[1]

    def endorsements(self, now: float, nonce: bytes | None = None) -> GpuEndorsements:
        """Return the endorsements at a Unix time, as a verifier fetches them.

        Args:
            now: The time.
            nonce: That of the evidence, 32 bytes, to add tokens of NRAS; None: without tokens.

        Raises:
            UsageError: If the nonce is not 32 bytes.
        """
        if nonce is None:
            return GpuEndorsements(self.rims, self.ocsp_answers(now))
        moment = datetime.fromtimestamp(int(now), timezone.utc)
        answers = tuple(self._request_tokens(nonce, moment))
        keys = self.nras.jwks(moment)
        return GpuEndorsements(self.rims, self.ocsp_answers(now), keys, answers)

    def _request_tokens(self, nonce: bytes, now: datetime) -> Iterator[bytes]:
        """Yield NRAS's response (JSON) for the GPUs, and for the switches if there are any.

        `nonce` are the 32 bytes that the evidence is over.
        """
        devices = self.evidence(nonce).devices
        architectures: list[Architecture] = [device.model.architecture for device in self.devices]
        for architecture in dict.fromkeys(architectures):
            asked = [one for one in devices if one.architecture == architecture]
            kind = "switch" if architecture == "LS10" else "gpu"
            body = encode_request(asked, architecture, nonce, "3.0")
            yield self.nras.attest(f"/v3/attest/{kind}", body, now).body

    @cached_property
    def nras(self) -> SimulatedNras:
        """The simulated NRAS, which appraises evidence of these devices."""
        return SimulatedNras(self.derive, self._appraise, self._fault.nras)

    def _appraise(self, evidence: GpuEvidence, nonce: bytes, now: datetime) -> None:
        from attestkit.gpu import verify  # lazy: only for NRAS

        endorsements = self.endorsements(now.timestamp())
        verify(evidence, nonce=nonce, now=now, endorsements=endorsements, roots=self.roots)

    def _driver_rim(self, model: DeviceModel) -> bytes:
        content = self._rim(model, model.driver, model.driver_indexes)
        if self._fault.driver_rim is not None:
            content = self._fault.driver_rim(content)
        rim = self._sign(content, model)
        return self._fault.rim_file(rim) if self._fault.rim_file is not None else rim

    def _vbios_rim(self, model: DeviceModel) -> bytes:
        content = self._rim(model, model.vbios, model.vbios_indexes)
        if self._fault.vbios_rim is not None and model is self.devices[0].model:
            content = self._fault.vbios_rim(content)
        return sign_rim(content, *self._rim_pki.rim_signer(model))

    def _sign(self, content: RimContent, model: DeviceModel) -> bytes:
        """Return a signed driver RIM; a fault can replace the key or the certificates."""
        expired = self._fault.rim_signer == "expired"
        key, chain = self._rim_pki.rim_signer(model, expired=expired)
        if self._fault.rim_signer == "swapped":
            key = self._other_pki.rim_signer(model)[0]
        return sign_rim(content, key, chain)

    def _rim(self, model: DeviceModel, version: str, active: tuple[int, ...]) -> RimContent:
        resources = [
            RimResource(
                index in active,
                (golden_measurement(self.derive, model, index) if index in active else bytes(48),),
            )
            for index in range(model.blocks)
        ]
        edition = "GPU" if model.driver_indexes else "SWITCH"
        return RimContent(model.product, version, tuple(resources), edition)

    # -- devices -------------------------------------------------------------------------------

    @property
    def _device_pki(self) -> gpu_pki.GpuPki:
        return self._other_pki if self._fault.other_root == "device" else self._pki

    @property
    def _rim_pki(self) -> gpu_pki.GpuPki:
        return self._other_pki if self._fault.other_root == "rim" else self._pki

    def _make_devices(self) -> tuple[SimulatedDevice, ...]:
        config, gpu = self.config, MODELS[self.config.chosen_architecture]
        gpus = [f"gpu/{number}" for number in range(config.chosen_count)]
        switches = [f"switch/{number}" for number in range(PROTECTED_SWITCHES)]
        if not config.is_protected:
            switches = []
        pki = self._device_pki
        machine = MachineFacts(
            config.is_protected,
            self._feature(),
            tuple(map(pki.pdi, gpus)),
            tuple(map(pki.pdi, switches)),
        )
        models = [(label, gpu) for label in gpus] + [(label, MODELS["LS10"]) for label in switches]
        return tuple(
            [
                self._make_device(label, model, machine if at else self._first(machine))
                for at, (label, model) in enumerate(models)
            ]
        )

    def _make_device(
        self, label: str, model: DeviceModel, machine: MachineFacts
    ) -> SimulatedDevice:
        other = "gpu/other" if self._fault.other_device_key and label == "gpu/0" else None
        device = self._device_pki.device(label, model, device_key=other)
        position = int(label.rpartition("/")[2])
        return SimulatedDevice(self.derive, device, position, machine)

    def _feature(self) -> int | None:
        if self.config.is_protected:
            return _PROTECTED
        if self.config.chosen_architecture == "HOPPER":
            return None
        return _SPT if self.config.chosen_count == 1 else _MPT

    def _first(self, machine: MachineFacts) -> MachineFacts:
        """Return the facts that the first device reports; a fault of the machine alters them."""
        return machine._replace(feature=_SPT) if self._fault.machine == "spt-with-mpt" else machine

    def _served(self) -> list[gpu_pki.ServedCertificate]:
        """Return the certificates about which the OCSP responder answers."""
        pki, found = self._device_pki, dict[bytes, gpu_pki.ServedCertificate]()
        fault = self._fault.ocsp
        for at, device in enumerate(self.devices):
            model, (leaf, brom, provisioner, identity, _) = device.model, device.device.chain
            of_brom = fault if at == 0 and fault and fault.target == "brom" else None
            below = (device.device.key, leaf)
            found[brom] = gpu_pki.ServedCertificate(brom, pki.provisioner(model), of_brom, below)
            found[provisioner] = gpu_pki.ServedCertificate(provisioner, pki.identity(model))
            found[identity] = gpu_pki.ServedCertificate(identity, pki.device_root)
            self._serve_rims(found, model, fault)
        return list(found.values())

    def _serve_rims(
        self,
        found: dict[bytes, gpu_pki.ServedCertificate],
        model: DeviceModel,
        fault: OcspFault | None,
    ) -> None:
        pki = self._rim_pki
        issuers = (pki.rim_l3(model), pki.rim_ca(model), pki.rim_root)
        of_signer = fault if fault and fault.target == "rim_signer" else None
        for expired in {False, self._fault.rim_signer == "expired"}:
            _, (signer, l3, ca, _) = pki.rim_signer(model, expired=expired)
            found[signer] = gpu_pki.ServedCertificate(signer, issuers[0], of_signer)
            found[l3] = gpu_pki.ServedCertificate(l3, issuers[1])
            found[ca] = gpu_pki.ServedCertificate(ca, issuers[2])


def _pad_first(devices: list[DeviceEvidence], padding: int) -> GpuEvidence:
    """Return evidence with `padding` NUL bytes after the PEM text of the first device's chain."""
    entries = [device.to_object() for device in devices]
    padded = devices[0].chain_pem + bytes(padding)
    entries[0]["certificate"] = b64encode(padded).decode("ascii")
    return GpuEvidence.from_json(msgspec.json.encode(entries))
