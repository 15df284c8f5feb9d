"""Parts of the TDX backends: the guest device, the client of the QGS, and the RTMRs.

System calls are parameters, so that tests can replace them.
"""
