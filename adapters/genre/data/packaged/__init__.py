"""Data sets and bases that come inside Python packages: where, which version, which checksum, under which licence."""
