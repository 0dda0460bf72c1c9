"""Trial: judge a machine by a rule before it is published: as it runs now, or as it was when facts were kept.

This is the part of `affiant assertions` that needs a machine, or what a monitor kept of one. It looks as
`affiant inspect` does, with the rights of the person who runs it; what it says proves nothing to anyone
else.
"""
