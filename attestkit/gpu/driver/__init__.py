"""Calls of NVIDIA's libraries on the machine with the devices: NVML, and NSCQ for switches."""
