"""The code and read-only data of each loaded module against the file in the distribution's package.

A module is looked up by name among the modules that the reference names, its file is laid out and
relocated as the kernel's loader does, and compared byte for byte; patch sites are judged by the rules
for the kernel's own. A module that is in no reference is named, with the digest of its code.

    references    files, and modules linked for their places     frames    where their pages lie
    comparison    one module, all that is wrong with it told      joined    all of them at once: is any odd?
    judge         which of the two, and what was found so far     look      every listed module at one moment

Promised: a module is told as packaged only if every byte of it was compared in that look, and every patch
site that follows data of the guest (keys of jump labels and static calls) was held against that data in
that look. Not promised: anything of what the kernel changes while it loads a module (tables that it sorts),
and of bytes that depend on symbols of memory that was freed. A module that is coming or going is not
compared, and said to be so; `Patience` bounds how long that is believed.
"""
