"""Evidence of NVIDIA GPUs and switches: its formats, and its verification.

Names are loaded when they are used.
"""
