"""NVIDIA's services for simulated GPUs: OCSP responder, RIM service, remote attestation (NRAS).

They compute answers; `attestkit.serve` provides the sockets.
"""
