"""Cryptography: the only package that imports cryptography, coincurve, PyNaCl and PyCryptodome.

Arguments are bytes; the libraries' exceptions are converted to those of attestkit.
"""
