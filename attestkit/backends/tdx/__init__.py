"""Parts of the TDX backends: the guest device, quotes by ioctl or QGS, and runtime registers.

System calls are parameters, so that tests can replace them.
"""
