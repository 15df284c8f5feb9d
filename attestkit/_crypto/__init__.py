"""Cryptography: the only package that imports cryptography, coincurve and PyNaCl.

Arguments are bytes; the libraries' exceptions are converted to those of attestkit.
"""
