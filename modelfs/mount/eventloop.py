"""How late the event loop is: whatever blocks it keeps every request of the mount waiting."""

import trio

from modelfs.counting import LAG_BOUNDS_S, Histogram

INTERVAL_S = 0.5


class EventLoopLag:
    """Wakes now and then, and notes how much later that was than it was to be."""

    def __init__(self) -> None:
        self.seconds = Histogram(LAG_BOUNDS_S)

    async def watch(self) -> None:
        """Measure; runs for ever."""
        while True:
            due = trio.current_time() + INTERVAL_S
            await trio.sleep_until(due)
            self.seconds.add(max(0.0, trio.current_time() - due))
