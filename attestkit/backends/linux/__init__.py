"""Linux facilities that several backends share: paths, release, system calls, and boot log.

Nothing here is specific to one TEE.
"""
