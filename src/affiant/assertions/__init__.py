"""Assertions: properties of a healthy kernel as Starlark scripts, judged on facts.

Facts in, verdicts out: a script sees the facts that it declares, as JSON, and answers with
observations; the engine makes one of four outcomes of them. Scripts run in a disposable worker
process without keys, descriptors or privileges, under exact limits (`Limits`). The same facts give
the same verdicts.

Not promised: that a script claims the right thing (its recordings and its review do), that the
facts are true (they are as good as the look at the guest that made them), and who wrote a script
(a bundle's signature is checked by whoever fetched it).

The way in: `bundle.packaged_library` or `bundle.make_bundle`, then `engine.Engine`.
"""
