"""Loaded modules: which there are, and the code and read-only data of each against the distribution's file.

    loaded        the lists that name modules, and executable pages that nobody explains
    image         a module as it must stand in memory
    sites         its patch sites, judged by the rules for the kernel's own
    references    files, and modules linked for their places
    places        where each part of a module lies
    frames        page frames of modules, many read at once
    comparison    one module, all that is wrong with it told
    joined        all of them at once: is any odd?
    judge         which of the two, and what was found so far
    look          every listed module at one moment
    left_text     text of modules that come or go, where no list may have them

A module is looked up by name among the modules that the reference names, its file is laid out and
relocated as the kernel's loader does, and compared byte for byte; patch sites are judged by the rules
for the kernel's own. A module that is in no reference is named, with the digest of its code.

Promised: a module is told as packaged only if every byte of it was compared in that look, and every patch
site that follows data of the guest (keys of jump labels and static calls) was held against that data in
that look. Not promised: anything of what the kernel changes while it loads a module (tables that it sorts),
and of bytes that depend on symbols of memory that was freed. A module that is coming or going is not
compared, and said to be so; `Patience` bounds how long that is believed.
"""
