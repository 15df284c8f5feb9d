"""A program that asks NVIDIA's nv-local-gpu-verifier about cases, each in its own process.

It runs in the environment of the verifier, without attestkit. Standard input is JSON: a list of
cases, each an object with

    name, arch, nonce (hex), report and chain (hex), driver_version, vbios_version, time (Unix),
    device_root and rim_root (paths of PEM files), ocsp_url, rim_url, ocsp_nonces (bool)

Standard output has one JSON object per case: name, accepted, and the verifier's messages. The
verifier keeps its state in classes, therefore each case has a process.
"""

import io
import json
import logging
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import OpenSSL.crypto as openssl
from verifier import cc_admin
from verifier.config import BaseSettings, BlackwellSettings, HopperSettings, info_log
from verifier.nvml import gpu_cert_chains
from verifier.nvml.test_handle import TestHandle

ARCHITECTURES = {"HOPPER": 9, "BLACKWELL": 10}  # numbers of NVML


class Handle(TestHandle):  # type: ignore[misc, unused-ignore]
    """A device whose certificates are given."""

    def __init__(self, chain: bytes) -> None:
        self.chain = chain

    def get_test_gpu_certificate_chain(self) -> bytes:
        """Return the PEM text."""
        return self.chain


class Gpu:
    """The interface that the verifier has to a GPU, over the evidence of a case."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case

    def get_gpu_architecture(self) -> int:
        """Return NVML's number of the architecture."""
        return ARCHITECTURES[self.case["arch"]]

    def get_uuid(self) -> str:
        """Return a name."""
        return str(self.case["name"])

    def get_driver_version(self) -> str:
        """Return the version."""
        return str(self.case["driver_version"])

    def get_vbios_version(self) -> str:
        """Return the version in lower case, as NVML does."""
        return str(self.case["vbios_version"]).lower()

    def get_attestation_report(self) -> bytes:
        """Return the report."""
        return bytes.fromhex(self.case["report"])

    def get_attestation_cert_chain(self) -> list[Any]:
        """Return the certificates, as the verifier reads them from the driver."""
        handle = Handle(bytes.fromhex(self.case["chain"]))
        chains = gpu_cert_chains.GpuCertificateChains(handle)
        found: list[Any] = chains.GpuAttestationCertificateChain
        return found


def pin_time(unix: float) -> None:
    """Let each verification of certificates be at this time."""
    moment = datetime.fromtimestamp(unix, timezone.utc).replace(tzinfo=None)
    make_store, make_context = openssl.X509Store.__init__, openssl.X509StoreContext.__init__

    def store_init(self: Any) -> None:
        make_store(self)
        self.set_time(moment)

    def context_init(self: Any, store: Any, *rest: Any, **more: Any) -> None:
        store.set_time(moment)
        make_context(self, store, *rest, **more)

    openssl.X509Store.__init__ = store_init
    openssl.X509StoreContext.__init__ = context_init


def decide(case: dict[str, Any]) -> dict[str, Any]:
    """Return the verifier's verdict on a case."""
    for settings in (BaseSettings, HopperSettings, BlackwellSettings):
        settings.DEVICE_ROOT_CERT = case["device_root"]
        settings.RIM_ROOT_CERT = case["rim_root"]
        settings.ROOT_CERT_DIR = str(Path(case["rim_root"]).parent)
    pin_time(case["time"])
    messages = io.StringIO()
    info_log.addHandler(logging.StreamHandler(messages))
    arguments = {
        "verbose": False,
        "test_no_gpu": False,
        "driver_rim": None,
        "vbios_rim": None,
        "user_mode": True,
        "allow_hold_cert": False,
        "service_key": None,
        "rim_service_url": case["rim_url"],
        "ocsp_url": case["ocsp_url"],
        "ocsp_nonce_disabled": not case["ocsp_nonces"],
        "claims_version": "3.0",
    }
    # After a failure it asks the driver for its mode, which is missing here.
    cc_admin.NvmlHandler.is_cc_dev_mode = staticmethod(lambda: False)
    accepted, _ = cc_admin.attest(arguments, case["nonce"], [Gpu(case)])
    return {"name": case["name"], "accepted": bool(accepted), "messages": messages.getvalue()}


def decide_apart(case: dict[str, Any]) -> dict[str, Any]:
    """Return the verifier's verdict on a case, from a new process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            json.dump(decide(case), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def main() -> None:
    """Print the verdicts on the cases of standard input."""
    # The verifier logs to standard output.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        for case in json.load(sys.stdin):
            output.write(json.dumps(decide_apart(case)) + "\n")


if __name__ == "__main__":
    main()
