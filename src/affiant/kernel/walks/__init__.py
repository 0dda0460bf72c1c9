"""Walks over guest memory: who reads the kernel's structures, with bounds and without trust.

    lists             list_head, rbtree, xarray
    known_walks       walks that need not be done again while each word that they read is what it was
    struct_columns    members of many structures of one type, all read at once
    snapshot          guest memory for one attempt: every page is copied once, with bounds
    places            a path of members against the reference's types: offsets, and pointers to follow
    readings          from a place to one value as JSON
    elements          the elements of whatever structure a query describes
    idr               what the kernel gave ids to, by them

Promised: every walk ends. One that meets a cycle, an element too many or a wild pointer raises, and what it
found until then never looks like the whole.
"""
