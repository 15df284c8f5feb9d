"""Interface to the operating system: untrusted files, locks, atomic writes, process hardening.

The contents of the files are the caller's business.
"""
