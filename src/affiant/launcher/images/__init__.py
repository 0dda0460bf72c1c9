"""What the monitor and the relay are made of, measured, and what they can reach.

image_files         which files of this installation belong into an image
bytecode            compiled modules of it, the same each time
manifest            names and digests of all files: the measurement
image               an image in the cache, made and measured
sandbox             a program in an image, and nothing of the host beside it
"""
