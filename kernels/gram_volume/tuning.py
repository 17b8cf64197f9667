"""Measured choices, one entry a device kind; `bench/tune.py` rewrites this file on the device.

TUNED[device_kind] = {"implementation": name, "tile": [anchors, tuples]}. Empty until someone has
run it: XLA is then the default everywhere.
"""

TUNED: dict[str, dict[str, str | list[int]]] = {}
