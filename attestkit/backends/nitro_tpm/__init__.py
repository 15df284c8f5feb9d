"""Backend for AWS EC2 instances with a NitroTPM: attestation documents, and events in PCR 14."""

from attestkit.backends.nitro_tpm.backend import BANK, EVENT_PCR, NitroTpmBackend

__all__ = ["BANK", "EVENT_PCR", "NitroTpmBackend"]
