"""Scoring files of requests, in one process or on Ray."""
