"""The worker process: evaluates assertion scripts, holds nothing, can reach nothing.

Started by `affiant.assertions.worker` with `python -I -S` and an empty environment. It uses the
standard library, `starlark` and the files of this folder alone. Its only descriptor is 0, a socket
to its parent. Before it reads the first script it gives up the rest: resource limits, no new
privileges, a seccomp filter that leaves memory, its socket and its own end.

Frames, both ways: a 4-byte big-endian length, then that many bytes. A request is a JSON object;
the answers are JSON objects, one for each script or fact, in the order asked, so that the parent
knows at whose turn a worker died.

    {"load": [[key, source]...], "language": text, "fold": text}
        one answer for each script: {"header": {...}, "queries": {...}} or {"error": text}
    {"judge": [[key, [[as, fact]...]]...], "facts": [name...]}, then one frame for each fact (JSON);
        a script finds each of its facts under the name after `as`
        one answer for each fact: {} or {"error": text}
        one answer for each script: {"answer": folded} or {"error": text}
        then {"cpu_seconds": number}, used by the worker since its start
    {"lint": source, "language": text}
        one answer: {"problems": [[line, column, text]...]}

A Python exception that is not the evaluator's own error ends the process, with one of `endings` as
exit code: what comes after a panic is a fresh process.
"""
