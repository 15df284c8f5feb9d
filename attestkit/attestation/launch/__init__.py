"""What a machine was launched with: TDX, SEV-SNP, its OS image, and its sealed configuration.

Expected measurements are worked out here, and whoever verifies compares them.
"""
