"""Stub of NVIDIA's driver libraries, for programs on an emulated machine with simulated GPUs.

The libraries are compiled when they are needed; all their answers come from a `StubServer`.
"""
