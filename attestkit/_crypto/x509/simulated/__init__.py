"""Certificates and CRLs of simulated authorities: Intel, AMD, clouds and GPUs.

Equal arguments give equal bytes: signatures are deterministic.
"""
