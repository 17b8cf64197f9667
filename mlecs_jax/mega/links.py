"""Links between tiers: how long a message takes, from explicit bandwidth and round-trip time.

Compute is measured and sizes are those of encoded messages; the links alone are modelled. What a
real link adds (loss, contention, slow start) is not in these figures.
"""

from __future__ import annotations

import dataclasses

from mlecs_jax.errors import UserError

MBIT = 1e6 / 8  # bytes per second of 1 Mbit/s


@dataclasses.dataclass(frozen=True)
class Link:
    """One connection from a lower tier to the one above it.

    Attributes:
      up, down: bytes per second in each direction.
      rtt: round-trip time in seconds; a message or a request–reply pair costs it once.
    """

    up: float
    down: float
    rtt: float

    def __post_init__(self) -> None:
        if not (self.up > 0 and self.down > 0 and self.rtt >= 0):
            raise UserError(f"a link of {self.up} and {self.down} bytes/s and {self.rtt} s; "
                            "give positive bandwidths and a round-trip time of 0 or more")

    def upload(self, num_bytes: int) -> float:
        """Seconds until a message of that size is at the upper tier."""
        return num_bytes / self.up + self.rtt

    def download(self, num_bytes: int) -> float:
        """Seconds from a request to the last byte of the reply at the lower tier."""
        return num_bytes / self.down + self.rtt

    def bytes_within(self, seconds: float) -> float:
        """The largest upload that arrives before a deadline, bandwidth × time; 0 if none does."""
        return max(0.0, (seconds - self.rtt) * self.up)


@dataclasses.dataclass(frozen=True)
class Links:
    """The two kinds of connection of a three-tier system.

    Attributes:
      end_edge: from an end device to its edge.
      edge_cloud: from an edge, and in cloud-only operation from an end device, to the cloud.
    """

    end_edge: Link
    edge_cloud: Link


PRESETS = {
    # Wi-Fi at the site, a broadband uplink to a data centre in the region.
    "realistic": Links(Link(up=50 * MBIT, down=50 * MBIT, rtt=0.004),
                       Link(up=20 * MBIT, down=100 * MBIT, rtt=0.030)),
    # A crowded radio link at the site, which cannot carry float32 before the deadline, and a weak
    # uplink: here devices compress.
    "slow": Links(Link(up=4 * MBIT, down=4 * MBIT, rtt=0.020),
                  Link(up=5 * MBIT, down=20 * MBIT, rtt=0.050)),
    # What Mega-CE²'s Table 3 implies: 97 kB in 0.1 ms (7.8 Gbit/s) and 7.5 MB in 1.75 s
    # (34 Mbit/s), no round-trip time.
    "paper": Links(Link(up=97e3 / 1e-4, down=97e3 / 1e-4, rtt=0.0),
                   Link(up=7.5e6 / 1.75, down=7.5e6 / 1.75, rtt=0.0)),
}


def preset(name: str) -> Links:
    """Named links.

    Raises:
      UserError: an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"links preset '{name}'; use {', '.join(PRESETS)}")
    return PRESETS[name]
