"""Live code and data against the reference, byte for byte.

    regions       parts of the kernel as they must stand in one guest
    compare       a region compared, and its differences counted by patch site
    differing     which bytes differ, in runs
    difference    what a comparison finds

What may stand at a patch site is judged in `affiant.kernel.site_content`.
"""
