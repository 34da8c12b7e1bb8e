"""Turns: the event loop goes on while many long texts are read.

A thousand tasks may have a text to read at the same moment, each for a few milliseconds. The loop
runs all that is ready before it looks at its clocks again, so deadlines would wait for all of them.
Whoever reads what a model wrote takes a turn first:

    await my_turn()

Source: ours.

Test: `pytest tests/test_hostile_text.py`. Read next: chat.py.
"""

import asyncio
import time

SHARE = 0.005  # seconds of one pass of the loop in which turns begin


class Turns:
    """When the current pass of a loop gave its first turn; None: it has given none yet."""

    loop = None
    first: float | None = None

    def end_pass(self) -> None:
        self.first = None


TURNS = Turns()


async def my_turn() -> None:
    """Return in this pass of the event loop if it has time left, else in a later one."""
    loop = asyncio.get_running_loop()
    if TURNS.loop is not loop:
        TURNS.loop, TURNS.first = loop, None
    while True:
        now = time.monotonic()
        if TURNS.first is None:
            TURNS.first = now
            loop.call_soon(TURNS.end_pass)  # in the next pass
        if now - TURNS.first < SHARE:
            return
        await asyncio.sleep(0)
