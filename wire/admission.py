"""What stands before authentication: the list of sources, a rate for each of them, and counters of what became of it.

Its memory is bounded whatever arrives, from however many addresses.
"""

from __future__ import annotations

import logging
from collections import Counter

from constant import RATE_BURST, RATE_PER_SECOND
from wire.access import AddressList
from wire.datagram import Dropped

log = logging.getLogger(__name__)

# Each takes about 200 bytes. A list that admits a whole network can have more senders than that, if somebody forges
# their addresses: those share one bucket then.
_SOURCES_LIMIT = 1024
_REFILLED_SECONDS = RATE_BURST / RATE_PER_SECOND


class RateLimit:
    """A token bucket for each source: RATE_BURST datagrams at once, RATE_PER_SECOND in the long run."""

    def __init__(self, sources_limit: int = _SOURCES_LIMIT) -> None:
        self._limit = sources_limit
        # By source: how many are left, and when that was. In the order of last use, so that full ones come first.
        self._buckets: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        """How many buckets there are."""
        return len(self._buckets)

    def admits(self, source: str, now: float) -> bool:
        """Whether one more datagram from this source may be looked at now."""
        if source not in self._buckets and len(self._buckets) >= self._limit - 1:
            self._forget_full(now)
            if len(self._buckets) >= self._limit - 1:
                # The last one is the bucket of all who have none of their own.
                source = ""
        left, at = self._buckets.pop(source, (float(RATE_BURST), now))
        left = min(RATE_BURST, left + (now - at) * RATE_PER_SECOND)
        admitted = left >= 1
        self._buckets[source] = (left - 1 if admitted else left, now)
        return admitted

    def _forget_full(self, now: float) -> None:
        """A bucket that has been left alone until it is full again is as good as none."""
        while self._buckets:
            source, (_, at) = next(iter(self._buckets.items()))
            if now - at < _REFILLED_SECONDS:
                return
            del self._buckets[source]


class Counters:
    """How many datagrams came and what became of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()

    def __getitem__(self, name: str) -> int:
        return self.counts[name]

    def add(self, name: str) -> None:
        """Count one more of that name."""
        self.counts[name] += 1

    def drop(self, reason: str, source: str, port: int) -> None:
        """Count one that was dropped."""
        name = f"dropped: {reason}"
        if not self.counts[name]:
            # The first of each kind at once, for the admin who is just setting things up.
            log.warning("%s: a datagram from %s port %d; more of them are counted", name, source, port)
        self.add(name)

    def log_news(self) -> None:
        """Write the counters down if something was dropped or repeated since the last time."""
        if set(self.counts - self._logged) - {"received"}:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
            log.info("datagrams so far: %s", counts)
        self._logged = Counter(self.counts)


class Gate:
    """Decides who is looked at. The list may be put in another's place while it stands."""

    def __init__(self, sources: AddressList) -> None:
        self.sources = sources
        self.counters = Counters()
        self._rate = RateLimit()

    def pass_in(self, source: str, now: float) -> None:
        """Let a datagram from this address in. Raises Dropped, and counts nothing."""
        try:
            listed = source in self.sources
        except ValueError:
            listed = False
        if not listed:
            raise Dropped("source")
        if not self._rate.admits(source, now):
            raise Dropped("rate")
