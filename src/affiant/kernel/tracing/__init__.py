"""Who is called when the kernel traces itself.

    tracepoints    the functions that each calls, and the pointers that must be as they were linked
    perf_events    counters and tracing events, with the functions and programs that they enter

Probes and ftrace change code: see `affiant.kernel.site_content`. Programs: `affiant.kernel.bpf_programs`.
"""
