"""Linux facilities that several backends share: paths, errors, system calls, boot log, inspection.

Nothing here is specific to one TEE.
"""
