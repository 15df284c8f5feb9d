"""Backend for Google's Confidential VMs: hardware evidence, and a quote of the vTPM over it."""

from attestkit.backends.gcp.guest import Gcp, GcpSnpGuest, GcpTdGuest

__all__ = ["Gcp", "GcpSnpGuest", "GcpTdGuest"]
