"""Diagnosis for `doctor`: what was found on this machine, and the remedies.

Nothing here changes the machine.
"""
