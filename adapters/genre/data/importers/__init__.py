"""Readers of log files in the formats of public data sets; each returns plain frames for `genre.data.build`."""
