"""Expected events of RTMR1 and RTMR2: direct boots, disks, unified kernel images, GRUB.

They are computed from the kernel, initrd, command line and partition table alone.
"""
