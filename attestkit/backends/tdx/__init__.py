"""What TDX backends share: the guest device, quotes by ioctl or QGS, and run-time registers.

Each takes its system calls, so that tests can hand in others.
"""
