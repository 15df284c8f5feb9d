"""Checks of a verification, in the order of nvidia-gpu.md, section 8."""
