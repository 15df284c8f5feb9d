"""The kernel's configfs reports (TSM): entries, files, and the meaning of their errors.

TDX and SEV-SNP use the same interface.
"""
