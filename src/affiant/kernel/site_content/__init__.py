"""What stands at each place where the kernel patches itself, and whether it may stand there.

A byte inside a patch site is explained by its class only if the whole site holds one of the forms that
the kernel is entitled to put there, and if that form agrees with the data that it follows. One file
tells one class, or a few that are alike:

    alternatives, paravirt                instructions chosen by CPU features and hypervisor
    retpolines, mitigations               indirect branches, returns, calls, landing pads, lock prefixes
    runtime_constants                     operands set at boot
    jump_labels, static_calls             code that follows a key
    ftrace, ftrace_hooks, probes          code that follows whoever registered to be called

`rule` says what a class must offer, `fixed_forms` does it for those whose contents are known in advance,
`fixed_integers` reads keys, and `content` puts all of it together. A class without a rule stays unchecked,
and is told so.

Promised: what is called legal is a form that the kernel's own patching code would write at that very
site, computed from the reference; where guest data takes part (keys, lists of hooks), the data itself is
judged. Not promised: that a feature of the CPU is really there; that a tracer of the kernel is wanted.
"""
