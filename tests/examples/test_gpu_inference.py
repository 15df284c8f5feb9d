"""Tests of the gpu_inference example: CPU, app and GPUs of a service under one policy."""

import contextlib
import io
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

import attestkit
from attestkit import Attestation, Attester, SimulatedRoots
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.gpu import DeviceEvidence, GpuEvidence
from attestkit.report_data import gpu_nonce
from tests.examples.reader import TIMEOUT, Done, Reader
from tests.untyped import untyped

# find_spec, for the example's dependencies need not be imported here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("fastapi") is None or find_spec("uvicorn") is None,
        reason="the example needs fastapi and uvicorn",
    ),
]

APP: Final = "283cd85fbe589b86802a5f04dbf23f761864e6de"  # the simulator's own
OTHER_APP: Final = b'{"manifest_version":2,"name":"another","runner":"bash"}'
ACCEPTED: Final = (
    f"accepted: {APP} TCB UpToDate (SIMULATED)\n"
    "GPU 0: GH100 driver 999.10.01, VBIOS 96.00.9F.00.01, 33 measurements\n"
    "GPU 1: GH100 driver 999.10.01, VBIOS 96.00.9F.00.01, 33 measurements\n"
    "bound by: report_data\n"
)


@final
class Guest:
    """In place of the service's Attester: returns what a test chose, over the client's nonce."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self.answer: Callable[[bytes], Attestation] = self.genuine

    def open(self, **options: Any) -> Attester[Any]:
        """Open a machine of the same manufacturers, by default the genuine one."""
        return attestkit.open("simulator", **{"seed": self.seed, "gpus": 2, **options})

    def genuine(self, nonce: bytes) -> Attestation:
        """Return evidence of the genuine machine."""
        return self.of_machine(nonce)

    def of_machine(self, nonce: bytes, **options: Any) -> Attestation:
        """Return evidence of a machine, made as the example makes it."""
        with self.open(**options) as tee:
            return tee.attest(nonce=nonce, gpu=True)

    def cpu_only(self, nonce: bytes) -> Attestation:
        """Return evidence of the genuine machine's CPU, which knows of no GPUs."""
        with self.open() as tee:
            return tee.attest(nonce=nonce)

    def other_gpus(self, nonce: bytes) -> GpuEvidence:
        """Return genuine evidence of two GPUs of another machine over the same nonce."""
        with self.open(gpus=4) as tee:
            return GpuEvidence(tee.backend.gpu_evidence(gpu_nonce(nonce)).devices[2:])

    def attest(self, *, nonce: bytes, gpu: bool) -> Attestation:
        """Return the answer to the service."""
        assert gpu
        return self.answer(nonce)


@final
class Service:
    """The example's service, and its relying party."""

    def __init__(self, reader: Reader, guest: Guest, url: str) -> None:
        self.reader, self.guest, self.url = reader, guest, url
        command = reader.commands()[-1].removeprefix("python relying_party.py ")
        self.command = command.replace("http://127.0.0.1:8099", url)
        self._main = reader.load("relying_party").main

    def verify(self, answer: Callable[[bytes], Attestation], **files: Path) -> Done:
        """Run the relying party, with other files in place of those of `sim`."""
        arguments = shlex.split(self.command)
        for name, path in files.items():
            arguments[arguments.index(f"--{name.replace('_', '-')}") + 1] = str(path)
        self.guest.answer = answer
        printed, code = io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(self.reader.folder)
            patch.setattr("sys.argv", ["relying_party.py", *arguments])
            try:
                self._main()
            except SystemExit as ended:  # its text goes to stderr, and the code is 1
                printed.write(str(ended.code))
                code = 1
        return Done(code, printed.getvalue())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve the example's application in a thread."""
    import uvicorn  # lazy: it may be missing

    with Reader("gpu_inference", tmp_path_factory.mktemp("example")) as reader:
        assert reader.run(reader.commands()[0]).code == 0
        guest = Guest((reader.folder / "sim" / "seed").read_bytes())
        app = reader.load("service").create_app(guest)
        config = uvicorn.Config(app, log_level="critical", log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                yield Service(reader, guest, f"http://127.0.0.1:{listener.getsockname()[1]}")
            finally:
                server.should_exit = True
                thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.mark.slow  # the tests below are its parts
def test_gpu_inference_readme_commands_succeed(tmp_path: Path) -> None:
    """The relying party accepts the service of the README."""
    with Reader("gpu_inference", tmp_path) as reader:
        assert reader.run_all()[-1] == Done(0, ACCEPTED)


def test_gpu_inference_genuine_service_is_accepted(service: Service) -> None:
    """App, TCB, both GPUs and their binding are verified; the result says what they are."""
    assert service.verify(service.guest.genuine) == Done(0, ACCEPTED)


def flip_report_bit(evidence: GpuEvidence) -> GpuEvidence:
    """Flip a bit of the first GPU's measurements."""
    first, *others = evidence.devices
    report = bytearray(first.report)
    report[100] ^= 1
    return GpuEvidence(
        (DeviceEvidence("HOPPER", bytes(report), first.certificates, first.nonce), *others)
    )


def change_gpus(
    change: Callable[[GpuEvidence], GpuEvidence | None],
) -> Callable[[Guest, bytes], Attestation]:
    """Return an alteration of the evidence of GPUs on its way to the relying party."""

    def changed(guest: Guest, nonce: bytes) -> Attestation:
        evidence = guest.genuine(nonce)
        assert evidence.gpu_evidence is not None
        return evidence.with_gpu_evidence(change(evidence.gpu_evidence))

    return changed


def of_machine(**options: Any) -> Callable[[Guest, bytes], Attestation]:
    """Return an alteration of the machine: its CPU commits to the evidence of its GPUs."""
    return lambda guest, nonce: guest.of_machine(nonce, **options)


def use_cpu_of_other_guest(guest: Guest, nonce: bytes) -> Attestation:
    """Enclose the GPUs in evidence of another guest, which commits to its own GPUs."""
    return guest.of_machine(nonce, gpus=1).with_gpu_evidence(guest.genuine(nonce).gpu_evidence)


ALTERED_EVIDENCE: Final[dict[str, tuple[str, Callable[[Guest, bytes], Attestation]]]] = {
    # The CPU signed for other evidence of GPUs.
    "gpus-of-other-machine": (
        "report_data",
        lambda guest, nonce: guest.genuine(nonce).with_gpu_evidence(guest.other_gpus(nonce)),
    ),
    "gpu-left-out": ("report_data", change_gpus(lambda found: GpuEvidence(found.devices[:1]))),
    "gpu-report-bit": ("report_data", change_gpus(flip_report_bit)),
    "gpu-evidence-stripped": ("report_data", change_gpus(lambda _: None)),
    "other-nonce": ("report_data", lambda guest, nonce: guest.genuine(nonce[::-1])),
    "cpu-of-other-guest": ("report_data", use_cpu_of_other_guest),
    # The CPU signed for the nonce alone.
    "no-gpus": ("device_count", Guest.cpu_only),
    # The CPU commits to what its GPUs returned.
    "one-gpu": ("device_count", of_machine(gpus=1)),
    "gpu-signature": ("report_signature", of_machine(gpus=GpuConfig(2, fault="signature-bit"))),
    "gpu-nonce": ("nonce", of_machine(gpus=GpuConfig(2, fault="nonce-other"))),
    "gpu-firmware": ("measurements", of_machine(gpus=GpuConfig(2, fault="measurement-25"))),
    "other-app": ("reference_value", of_machine(app_compose=OTHER_APP)),
    "stale-tdx-module": ("tcb_status", of_machine(scenario="module-OutOfDate")),
    "debug": ("td_debug", of_machine(scenario="td-debug")),
}
"""Alterations of the evidence by name, with the reason of the refusal."""


@pytest.mark.parametrize("name", ALTERED_EVIDENCE)
def test_gpu_inference_altered_evidence_is_rejected(service: Service, name: str) -> None:
    """Evidence that differs from that of the genuine machine is rejected with its reason."""
    reason, alter = ALTERED_EVIDENCE[name]
    done = service.verify(lambda nonce: alter(service.guest, nonce))
    assert (done.code, done.printed.partition(":")[0]) == (1, f"refused, {reason}")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("rim-driver-version", "driver_rim_identity"),  # the manifest of another driver
        ("rim-altered", "driver_rim_signature"),
        ("ocsp-brom-revoked", "device_ocsp"),
    ],
)
def test_gpu_inference_endorsements_that_refuse_are_obeyed(
    service: Service, tmp_path: Path, fault: str, reason: str
) -> None:
    """Genuine evidence is rejected if NVIDIA's part revokes a GPU, or is about another driver."""
    path = tmp_path / "endorsements.json"
    with service.guest.open(gpus=GpuConfig(2, fault=fault)) as tee:
        tee.backend.gpu_endorsements().save(path)
    done = service.verify(service.guest.genuine, gpu_endorsements=path)
    assert (done.code, done.printed.partition(":")[0]) == (1, f"refused, {reason}")


def test_gpu_inference_stale_tcb_is_rejected(service: Service, tmp_path: Path) -> None:
    """Genuine evidence is rejected once Intel's collateral calls its TCB out of date."""
    path = tmp_path / "collateral.json"
    with service.guest.open(scenario="tcb-OutOfDate") as tee:
        tee.backend.collateral().save(path)
    done = service.verify(service.guest.genuine, collateral=path)
    assert (done.code, done.printed.partition(":")[0]) == (1, "refused, tcb_status")


@pytest.mark.parametrize(
    ("rule", "stricter", "reason"),
    [
        ('min_driver = "999.10.01"', 'min_driver = "999.20"', "driver_version"),
        ('vbios = ["96.00.9F.00.01"]', 'vbios = ["96.00.A0.00.01"]', "vbios_version"),
        ('chips = ["GH100"]', 'chips = ["GB100"]', "chip"),
        ("count = 2", "count = 8", "device_count"),
        ('os_image_hash = "', 'os_image_hash = ["' + "11" * 32 + '"]  # "', "os_image_hash"),
    ],
)
def test_gpu_inference_policy_is_enforced(
    service: Service, tmp_path: Path, rule: str, stricter: str, reason: str
) -> None:
    """One policy file has the rules for image, app and GPUs."""
    text = (service.reader.folder / "sim" / "policy.toml").read_text()
    assert rule in text
    path = tmp_path / "policy.toml"
    path.write_text(text.replace(rule, stricter, 1))
    done = service.verify(service.guest.genuine, policy=path)
    assert (done.code, done.printed.partition(":")[0]) == (1, f"refused, {reason}")


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("report_data", "refused, binding"),
        ("nonce", ACCEPTED.replace("by: report_data", "by: nonce")),
    ],
)
def test_gpu_inference_binding_rule_refuses_relayed_gpus(
    service: Service, tmp_path: Path, binding: str, expected: str
) -> None:
    """GPUs of another machine are valid beside a shared nonce; only the binding refuses them."""
    text = (service.reader.folder / "sim" / "policy.toml").read_text()
    policy, endorsements = tmp_path / "policy.toml", tmp_path / "endorsements.json"
    policy.write_text(text.replace('binding = "report_data"', f'binding = "{binding}"'))
    guest = service.guest
    with guest.open(gpus=4) as tee:  # the other machine
        tee.backend.gpu_endorsements().save(endorsements)
    done = service.verify(
        lambda nonce: guest.cpu_only(nonce).with_gpu_evidence(guest.other_gpus(nonce)),
        policy=policy,
        gpu_endorsements=endorsements,
    )
    assert done.code == (binding == "report_data")
    assert done.printed.startswith(expected)


def test_gpu_inference_policy_without_gpus_is_rejected(service: Service, tmp_path: Path) -> None:
    """A policy that accepts evidence without GPUs is not used."""
    text = (service.reader.folder / "sim" / "policy.toml").read_text()
    before, _, rest = text.partition("# GPUs beside the CPU.")
    path = tmp_path / "policy.toml"
    path.write_text(before + rest[rest.index("# Key provider") :])
    done = service.verify(service.guest.genuine, policy=path)
    assert done.code == 1
    assert "accepts evidence without GPUs" in done.printed


def test_gpu_inference_vendors_roots_accept_no_simulator(service: Service) -> None:
    """Without the simulator's roots of GPUs, the same evidence is rejected."""
    path = service.reader.folder / "sim" / "roots.json"
    written = path.read_bytes()
    path.write_bytes(SimulatedRoots.from_json(written)._replace(gpu=None).to_json())
    try:
        done = service.verify(service.guest.genuine)
    finally:
        path.write_bytes(written)
    assert (done.code, done.printed.partition(":")[0]) == (1, "refused, device_chain")


@pytest.mark.parametrize("nonce", ["", "5a", "5a" * 33, "zz" * 32])
def test_gpu_inference_service_rejects_other_nonces(service: Service, nonce: str) -> None:
    """A nonce that is not 32 bytes in hex is a client error."""
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{service.url}/attestation?nonce={nonce}")
    with caught.value as error:
        assert error.code == 422


def test_gpu_inference_device_error_is_unavailable(service: Service) -> None:
    """If the machine returns no evidence, the service answers 503, and the client exits."""

    def fail(nonce: bytes) -> Attestation:
        with service.guest.open(gpus=None) as tee:  # a machine without GPUs
            return tee.attest(nonce=nonce, gpu=True)

    done = service.verify(untyped(fail))
    assert done.code == 1
    assert "HTTP status 503" in done.printed
