"""Turns: the event loop goes on while many long texts are read.

In each pass the event loop runs every task that is ready, and only then looks at its clocks. A
thousand tasks that each read a text for a few milliseconds would make that pass seconds long, and
no deadline would be kept meanwhile. Whoever reads what a model wrote waits for its turn first:

    await my_turn()

A turn is granted at once while the pass is young and nobody waits; else one in each pass, in the
order of asking.

Source: ours.

Test: `pytest tests/test_hostile_text.py`. Read next: chat.py.
"""

import asyncio
import collections
import time
import weakref

SHARE = 0.005  # seconds of a pass in which turns are granted at once


class Turns:
    """Those of one event loop. It holds no loop: that would keep every loop for ever (TURNS)."""

    def __init__(self):
        self.first: float | None = None  # time of the first turn in this pass
        self.line: collections.deque[asyncio.Future] = collections.deque()

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if self.first is None:
            self.first = now
            loop.call_soon(self.begin_pass)  # in the next pass
        if not self.line and now - self.first < SHARE:
            return
        future = loop.create_future()
        self.line.append(future)
        await future

    def begin_pass(self) -> None:
        self.first = None
        while self.line:
            future = self.line.popleft()
            if future.done():  # whoever waited was cancelled
                continue
            future.set_result(None)
            self.first = float("-inf")  # long ago: the pass that begins has given its turn
            asyncio.get_running_loop().call_soon(self.begin_pass)
            return


TURNS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # event loop -> Turns


async def my_turn() -> None:
    """Return when the caller may read a text."""
    loop = asyncio.get_running_loop()
    if loop not in TURNS:
        TURNS[loop] = Turns()
    await TURNS[loop].wait()


async def all_of(coroutines: list) -> list:
    """Their results, at the same time. All end before the first error is raised."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if not errors:
        return results
    try:
        raise errors[0]
    finally:
        # An error holds this frame, and these names would hold the errors: a circle, which only a
        # pause for garbage collection would free.
        del results, errors
