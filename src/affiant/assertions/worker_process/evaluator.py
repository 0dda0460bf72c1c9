"""The evaluator: compiled scripts, facts decoded once, and one script's turn at a time."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

from affiant.assertions.worker_process.frames import receive, send, tell
from affiant.assertions.worker_process.plain_values import plain, queries_are_sensible

__all__ = ["Evaluator"]

_HEADER = ("NAME", "VERSION", "SENTENCE", "SEVERITY", "TECHNIQUE", "MODE", "FACTS")
_PROBLEMS = 256


class Evaluator:
    """Compiled scripts, and one script's turn at a time."""

    def __init__(self, starlark: Any, limits: dict[str, Any]) -> None:
        self._starlark = starlark
        self._limits = limits
        self._ticks = 0
        self._scripts: dict[str, Any] = {}
        self._modules: dict[str, Any] = {}
        extension = starlark.LibraryExtension
        self._script_globals = starlark.Globals.extended_by([extension.Typing])
        self._own_globals = starlark.Globals.extended_by([extension.Typing, extension.Json])
        self._dialect = _dialect(starlark)
        self._options = starlark.EvalOptions(
            check_cancelled=self._exhausted, max_callstack_size=int(limits["call_depth"])
        )
        self._no_modules = self._loader(lambda name: None)
        # Decoded inside the evaluator and frozen: each fact is converted once, whoever reads it.
        self._decoding = self._parse("(a fact)", "value = json.decode(text)")
        self._calls: dict[str, tuple[list[list[str]], Any]] = {}

    def _exhausted(self) -> bool:
        self._ticks += 1
        return self._ticks > int(self._limits["fuel"])

    def _loader(self, offered: Callable[[str], Any]) -> Any:
        def load(name: str) -> Any:
            module = offered(name)
            if module is None:
                raise ValueError(f"there is no module {name!r} to load")
            return module

        return self._starlark.FileLoader(load)

    def _parse(self, name: str, source: str) -> Any:
        return self._starlark.parse(name, source, self._dialect)

    def _evaluate(self, module: Any, tree: Any, scope: Any, loader: Any) -> Any:
        return self._starlark.eval_with(self._options, module, tree, scope, file_loader=loader).value

    def _turn(self, work: Callable[[], dict[str, Any] | bytes]) -> None:
        """Do one script's or fact's work under its limits and send its answer."""
        self._ticks = 0
        # The default action of SIGPROF ends the process: nothing else stops a single operation.
        signal.setitimer(signal.ITIMER_PROF, float(self._limits["cpu_seconds"]))
        try:
            answer = work()
        except self._starlark.StarlarkError as error:
            if self._ticks > int(self._limits["fuel"]):
                answer = {"error": f"used up its fuel of {self._limits['fuel']} thousand steps"}
            else:
                answer = {"error": str(error)[-4096:]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if len(payload) > int(self._limits["answer_bytes"]):
            payload = json.dumps({"error": "answered with too many bytes"}).encode()
        send(payload)

    def load(self, request: dict[str, Any]) -> None:
        """Compile the scripts of a request, in the place of those before."""
        self._scripts.clear()
        self._calls.clear()
        for name, scope in (("language", self._script_globals), ("fold", self._own_globals)):
            module = self._starlark.Module()
            self._evaluate(module, self._parse(f"({name})", request[name]), scope, self._no_modules)
            self._modules[name] = module.freeze()
        for key, source in request["load"]:
            self._turn(lambda key=key, source=source: self._compile(key, source))  # type: ignore[misc]  # a lambda's defaults have no types

    def _compile(self, key: str, source: str) -> dict[str, Any]:
        module = self._starlark.Module()
        offered = {"affiant": self._modules["language"]}
        tree = self._parse(key, source)
        self._evaluate(module, tree, self._script_globals, self._loader(offered.get))
        header = {name: plain(name, module[name]) for name in _HEADER}
        queries = module["QUERIES"]
        if not queries_are_sensible(queries):
            return {"error": "QUERIES holds too much, or something that is no text, number or dict"}
        compiled = module.freeze()
        try:
            kind = self._evaluate(
                self._starlark.Module(),
                self._parse("(the end of the script)", 'load("script", "check")\ntype(check)'),
                self._own_globals,
                self._loader({"script": compiled}.get),
            )
        except self._starlark.StarlarkError:
            return {"error": "the script defines no function check(facts)"}
        if kind != "function":
            return {"error": f"check must be a function, not {kind}"}
        self._scripts[key] = compiled
        return {"header": header, "queries": {} if queries is None else queries}

    def judge(self, request: dict[str, Any]) -> None:
        """Decode the facts of a request, run its scripts on them, and tell what was used."""
        texts = [(name, receive()) for name in request["facts"]]
        facts: dict[str, Any] = {}
        for name, text in texts:
            self._turn(lambda name=name, text=text: self._decode(facts, name, text))  # type: ignore[misc]  # a lambda's defaults have no types
        texts.clear()
        for key, reads in request["judge"]:
            self._turn(lambda key=key, reads=reads: self._check(facts, key, reads))  # type: ignore[misc]  # a lambda's defaults have no types
        usage = resource.getrusage(resource.RUSAGE_SELF)
        tell({"cpu_seconds": usage.ru_utime + usage.ru_stime})

    def _decode(self, facts: dict[str, Any], name: str, text: bytes) -> dict[str, Any]:
        module = self._starlark.Module()
        module["text"] = text.decode()
        self._evaluate(module, self._decoding, self._own_globals, self._no_modules)
        module["text"] = None
        facts[name] = module.freeze()
        return {}

    def _check(self, facts: dict[str, Any], key: str, reads: list[list[str]]) -> dict[str, Any] | bytes:
        missing = [name for _, name in reads if name not in facts]
        if key not in self._scripts or missing:
            return {"error": "could not be prepared"}
        offered = {f"fact:{given}": facts[name] for given, name in reads}
        offered["script"] = self._scripts[key]
        offered["fold"] = self._modules["fold"]
        folded: str = self._evaluate(
            self._starlark.Module(), self._call(key, reads), self._own_globals, self._loader(offered.get)
        )
        return b'{"answer":' + folded.encode() + b"}"

    def _call(self, key: str, reads: list[list[str]]) -> Any:
        """Return the call of a script's check with the facts that it reads, parsed once."""
        known = self._calls.get(key)
        if known is not None and known[0] == reads:
            return known[1]
        lines = ['load("fold", "fold")', 'load("script", "check")']
        lines += [f'load("fact:{given}", fact_{given} = "value")' for given, _ in reads]
        entries = ", ".join(f'"{given}": fact_{given}' for given, _ in reads)
        lines.append("fold(check({" + entries + "}))")
        tree = self._parse("(the call of check)", "\n".join(lines))
        self._calls[key] = (reads, tree)
        return tree

    def lint(self, request: dict[str, Any]) -> None:
        """Tell what is wrong with a script, as far as its text shows."""
        self._turn(
            lambda: {"problems": list(self._problems(request["lint"], request["language"]))[:_PROBLEMS]}
        )

    def _problems(self, source: str, language: str) -> Iterator[tuple[int, int, str]]:
        _, interface, _ = self._parse("affiant", language).typecheck(self._script_globals, {})
        tree = self._parse("script", source)
        for lint in tree.lint():
            begin = lint.resolved_location.span.begin
            yield begin.line + 1, begin.column + 1, f"{lint.short_name}: {lint.problem}"
        for error in tree.typecheck(self._script_globals, {"affiant": interface})[0]:
            begin = error.span.span.begin if error.span else None
            text = str(error).splitlines()[0].removeprefix("error: ")
            yield (begin.line + 1, begin.column + 1, text) if begin else (1, 1, text)


def _dialect(starlark: Any) -> Any:
    # Assigned, not compared: the attributes of a dialect cannot be read.
    dialect = starlark.Dialect.standard()
    dialect.enable_def = True
    dialect.enable_lambda = True
    dialect.enable_load = True
    dialect.enable_load_reexport = False
    dialect.enable_keyword_only_arguments = True
    dialect.enable_f_strings = True
    dialect.enable_top_level_stmt = False
    dialect.enable_types = starlark.DialectTypes.ENABLE
    return dialect
