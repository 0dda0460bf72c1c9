"""What passes by itself in a healthy kernel: it is always in the middle of something.

    patience          telling what lasts from what passes
    grace_periods     how far RCU has come with what is freed later
    deferred_calls    callbacks that wait for RCU, and work that waits for workers
    init_freeing      memory that modules needed for their init alone, about to be freed
    booting           whether the kernel still boots
    code_changes      whether the kernel is changing its own code just now

What is excused here is data of the guest, so each excuse is narrow and wears out.
"""
