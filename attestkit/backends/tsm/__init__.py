"""What backends share of the kernel's configfs reports: entries, files, and what its errors mean.

The same interface serves TDX and SEV-SNP.
"""
