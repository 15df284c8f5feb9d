"""What backends share of the Linux kernel: its paths, release, system calls, and boot log.

Nothing here is about one platform alone.
"""
