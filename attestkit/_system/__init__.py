"""Interface to the operating system: untrusted files, locks, atomic writes, process hardening.

The contents of files are interpreted by other modules.
"""
