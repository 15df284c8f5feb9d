"""Interface to the operating system: untrusted files, locks, atomic writes, process hardening.

Other modules interpret the contents of the files.
"""
