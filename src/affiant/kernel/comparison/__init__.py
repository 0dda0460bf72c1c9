"""Live code and data against the reference, byte for byte.

    text          regions of the kernel image compared, and their differences counted by patch site
    difference    what a comparison finds

What may stand at a patch site is judged in `affiant.kernel.site_content`.
"""
