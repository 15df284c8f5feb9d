"""TPM 2.0 of this machine: transports, commands, sessions and quotes.

The modules are shared by the backends of clouds, whose guests have a virtual TPM.
"""
