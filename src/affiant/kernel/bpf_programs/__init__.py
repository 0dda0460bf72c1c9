"""BPF programs: which are loaded, what each calls, where each is entered from, and which are on no list.

    look            all of it together; `PLACES` is the table of what is looked through
    survey          what is noted of one kind of places
    links, symbols, trampolines, tracing, cgroups, networks, program_arrays, descriptors
                    one kind of places each; program_lists: arrays that several of them have
    programs        what the kernel says of a program
    listed          the programs on the list, with what they call
    callees         what its machine code calls, by name; effects: what such calls can do

Promised: a program that one of these places leads to, and that `prog_idr` does not name, is told, and so is
a link that `link_idr` does not name. All of the places are guest memory, so each is a witness and none a
proof; but trampolines are read as code, which leads to what it calls.

Not promised: places that are not in the table (filters of sockets, maps of sockets, routes, devices of
netkit's, classifiers in modules, probes on many functions at once).
What is loaded there and on no list is a classic filter for `page_content`, which may then call and write next
to nothing.
"""
