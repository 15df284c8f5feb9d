"""Backend for Google's Confidential VMs: hardware evidence, and a quote of the vTPM over it."""

from attestkit.backends.gcp.backend import GcpBackend, GcpSnpGuest, GcpTdGuest

__all__ = ["GcpBackend", "GcpSnpGuest", "GcpTdGuest"]
