"""The real HTTP server of a simulated service, in a thread, on a free port."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from affiant.service import server
from affiant.service.http import build_app
from affiant.service.server import _Server, listen
from affiant.service.settings import Limits
from tests.simulator import World


@contextlib.contextmanager
def serving(world: World, limits: Limits) -> Iterator[tuple[str, int]]:
    """Run the real server in a thread."""
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()[:2]
    ready = threading.Event()
    holder: list[_Server] = []

    class Stoppable(_Server):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            holder.append(self)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals belong to the main thread

    app = build_app(world.service.api, limits=limits, clock=lambda: world.service.now)
    original, server._Server = server._Server, Stoppable  # type: ignore[misc]
    thread = threading.Thread(
        target=server.serve, args=(app, listener), kwargs={"limits": limits, "ready": ready.set}
    )
    try:
        thread.start()
        assert ready.wait(20)
        yield host, port
    finally:
        server._Server = original  # type: ignore[misc]
        holder[0].should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()
