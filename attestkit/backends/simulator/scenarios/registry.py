"""Registry of the simulator: every named scenario and fault, each with its expected outcome.

docs/guides/testing/scenarios.md is made from it. A scenario is passed as `scenario=`, a fault as
`faults=`. The scenarios of guests behind a vTPM are here; their outcome is that of a strict
verifier whose policy names the platform.
"""

from datetime import timedelta
from importlib import import_module
from typing import Any, Final, cast

from attestkit._argument_checks import wrong_type
from attestkit._sanitize import near, shown
from attestkit.backends.simulator.scenarios.config import CloudConfig, Scenario
from attestkit.backends.simulator.scenarios.named_case import (
    GPU_PREFIX,
    NO_STATUS,
    Cases,
    NamedCase,
    describe_cases,
)
from attestkit.backends.simulator.scenarios.tee_scenarios import TEES
from attestkit.errors import UsageError


def _cloud(platform: str, outcome: str, text: str, **fields: Any) -> NamedCase:
    return NamedCase(platform, outcome, text, Scenario(platform, cloud=CloudConfig(**fields)))


def _azure(platform: str, report: str) -> dict[str, NamedCase]:
    """Return the scenarios that Azure's SNP and TDX VMs share, by name.

    `platform` is "azure-snp" or "azure-tdx", with which the names begin; `report` is the name of
    the hardware report in the texts of help.
    """
    return {
        f"{platform}-wrong-binding": _cloud(
            platform,
            "hcl_binding",
            f"{report} is not over the paravisor's runtime data",
            bound=False,
        ),
        f"{platform}-foreign-ak": _foreign_ak(
            platform, "the runtime data have the attestation key of another TPM"
        ),
        f"{platform}-stale-nonce": _stale(platform, "TPM quote and user data are those"),
        f"{platform}-wrong-bank": _wrong_bank(platform),
    }


def _foreign_ak(platform: str, text: str) -> NamedCase:
    return _cloud(platform, "tpm_quote_bad_signature", text, foreign_ak=True)


def _stale(platform: str, parts: str, outcome: str = "report_data_mismatch") -> NamedCase:
    return _cloud(platform, outcome, f"{parts} of an earlier request", stale_nonce=True)


def _wrong_bank(platform: str) -> NamedCase:
    return _cloud(
        platform, "pcr_selection", "the TPM quote selects the SHA-384 bank", bank="sha384"
    )


def _grub(platform: str, outcome: str, text: str = "") -> NamedCase:
    text = text or "shim and GRUB start the kernel, and measure into PCRs 8 and 14, too"
    return _cloud(platform, outcome, text, loader="grub")


def _relayed(platform: str, evidence: str) -> NamedCase:
    text = f"the {evidence} is of another machine, and commits to that machine's vTPM"
    return _cloud(platform, "report_data", text, relayed=True)


def _vmpl(vmpl: int) -> NamedCase:
    text = f"the SEV-SNP report was requested at VMPL {vmpl}, by the guest itself"
    return _cloud("azure-snp", "vmpl", text, vmpl=vmpl)


_GOOGLE_AK: Final = "the certificate is that of another vTPM's attestation key"

CLOUDS: Final[Cases] = {
    "azure-snp": _cloud(
        "azure-snp",
        "UpToDate",
        "an Azure VM on SEV-SNP: HCL report, TPM quote, VCEK of the metadata service",
    ),
    **_azure("azure-snp", "the SEV-SNP report"),
    "azure-snp-vmpl-2": _vmpl(2),
    "azure-snp-vmpl-3": _vmpl(3),
    "azure-snp-grub": _grub("azure-snp", "UpToDate"),
    "azure-tdx": _cloud(
        "azure-tdx",
        "UpToDate",
        "an Azure VM on TDX: HCL report, TPM quote, TD quote of the metadata service",
    ),
    **_azure("azure-tdx", "the TD report"),
    "gcp-tdx": _cloud("gcp-tdx", "UpToDate", "a Google VM on TDX, whose vTPM signs the TD quote"),
    "gcp-tdx-relayed-quote": _relayed("gcp-tdx", "TD quote"),
    "gcp-tdx-foreign-ak": _foreign_ak("gcp-tdx", _GOOGLE_AK),
    "gcp-tdx-stale-nonce": _stale("gcp-tdx", "TD quote and TPM quote are those", "report_data"),
    "gcp-tdx-grub": _grub(
        "gcp-tdx", "UpToDate", "shim measures its keys into PCR 14, before the events of the app"
    ),
    "gcp-tdx-intermediate": _cloud(
        "gcp-tdx",
        "missing",
        "an intermediate CA issues the certificate of the vTPM's key, and the verifier has none",
        intermediate=True,
    ),
    "gcp-tdx-wrong-bank": _wrong_bank("gcp-tdx"),
    "gcp-snp": _cloud("gcp-snp", "UpToDate", "a Google VM on SEV-SNP, whose vTPM signs the report"),
    "gcp-snp-relayed-report": _relayed("gcp-snp", "report"),
    "gcp-snp-foreign-ak": _foreign_ak("gcp-snp", _GOOGLE_AK),
    "gcp-snp-stale-nonce": _stale("gcp-snp", "report and TPM quote are those"),
    "gcp-snp-grub": _grub("gcp-snp", "UpToDate"),
    "aws-snp": _cloud(
        "aws-snp",
        "vlek_providers",
        "an EC2 instance on SEV-SNP, whose reports the provider's key signs",
    ),
    "aws-nitro-tpm": _cloud(
        "aws-nitro-tpm",
        NO_STATUS,
        "an EC2 instance with a NitroTPM, whose hypervisor signs the PCRs",
    ),
    "aws-nitro-tpm-stale-nonce": _stale("aws-nitro-tpm", "the document is over the report data"),
    "aws-nitro-tpm-grub": _grub(
        "aws-nitro-tpm",
        NO_STATUS,
        "shim measures its keys into PCR 14, so that it has no events of an app",
    ),
    "aws-nitro-tpm-old": _cloud(
        "aws-nitro-tpm",
        "document_expired",
        "the document was made two hours ago",
        document_age=timedelta(hours=2),
    ),
    "aws-nitro-tpm-expired": _cloud(
        "aws-nitro-tpm",
        "cert_expired",
        "the document's certificates expired yesterday",
        certificate_age=timedelta(days=2),
    ),
    "tpm": _cloud(
        "tpm", NO_STATUS, "a machine with a TPM, whose attestation key has a certificate"
    ),
    "tpm-grub": _grub("tpm", NO_STATUS),
    "tpm-foreign-ak": _foreign_ak("tpm", "the attestation key is that of another TPM"),
    "tpm-stale-nonce": _stale("tpm", "the TPM quote is over the report data"),
}


SCENARIOS: Final[Cases] = {**TEES, **CLOUDS}
"""Scenarios of machines, without those of GPUs."""


def gpu_scenarios() -> Cases:
    """Return the scenarios with a fault of GPUs, by name, such as "gpu-nonce-other".

    The outcome is that of a verifier of CPU and GPUs.
    """
    # Lazy and by name: it is slow to import, and imports this package.
    module = import_module(f"{__name__.rsplit('.', 2)[0]}.gpu.gpu_faults")
    return cast("Cases", module.GPU_SCENARIOS)


def describe_scenarios() -> tuple[str, ...]:
    """Return one line of help for each scenario, those with a fault of GPUs last."""
    return (*describe_cases(SCENARIOS), *describe_cases(gpu_scenarios()))


def chosen_scenario(chosen: object, platform: object = None) -> Scenario:
    """Return the scenario for `chosen` and `platform`.

    Args:
        chosen: A name, a Scenario, or None for an up-to-date guest.
        platform: Platform of the guest, one of `PLATFORMS`. None: that of the scenario; "tdx" for
            None and for scenarios with a fault of GPUs, which are for any platform.

    Raises:
        UsageError: If an argument has the wrong type, a name is unknown, or the scenario is for
            another platform.
    """
    if platform is not None and not isinstance(platform, str):
        raise UsageError(f"platform: must be a str, not {platform!r}", reason="wrong_type")
    if chosen is None:
        return Scenario() if platform is None else Scenario(platform=platform)
    if isinstance(chosen, str):
        chosen = _on_platform(scenario(chosen), platform)
    if not isinstance(chosen, Scenario):
        raise wrong_type("scenario", "a str or a Scenario", chosen)
    if platform not in (None, chosen.platform):
        text = f"scenario: is for the platform {chosen.platform}, not {platform}; omit platform"
        raise UsageError(text, reason="conflict")
    return chosen


def _on_platform(chosen: Scenario, platform: str | None) -> Scenario:
    """Return a named scenario: one with a fault of GPUs is moved to `platform`, if given."""
    if chosen.gpu_fault is None or platform is None:
        return chosen
    return Scenario(platform=platform, gpu_fault=chosen.gpu_fault)


def scenario(name: str) -> Scenario:
    """Return the scenario `name`, such as "tcb-OutOfDate" or, with a GPU fault, "gpu-nonce-other".

    After "gpu-" any fault is accepted here; the simulator raises UsageError for an unknown one.

    Raises:
        UsageError: If any other name is unknown; the text suggests similar names.
    """
    if name.startswith(GPU_PREFIX):  # the simulator checks the rest when it attaches the GPUs
        return Scenario(gpu_fault=name.removeprefix(GPU_PREFIX))
    found = SCENARIOS[name].scenario if name in SCENARIOS else None
    if found is None:
        text = f"unknown scenario {shown(name)}{near(name, SCENARIOS)}; for a list run attestkit"
        raise UsageError(f"{text} serve --list-scenarios", reason="unknown_name")
    return found
