"""A real deployment: the same rounds between a cloud and devices that own their data."""
