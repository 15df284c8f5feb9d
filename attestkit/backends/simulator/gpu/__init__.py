"""Simulated NVIDIA GPUs and switches: certificates, reports, RIMs, OCSP, NRAS, from one seed.

Their roots are trusted only if the caller passes them: `SimulatedGpus.roots`.
"""
