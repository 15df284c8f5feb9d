"""Launch measurements and launch configuration: TDX, SEV-SNP, OS image, mr_config, vm_config.

Expected measurements are computed here and compared by the verifier.
"""
