"""Simulated guests behind a vTPM: machines of Azure, Google and AWS, and a plain TPM.

Each has a software TPM and, as its cloud has, a hardware report or quote, certificates and a
metadata service.
"""
