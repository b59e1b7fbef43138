"""Periodic refresh: plan, retrain on new events, compare, publish."""
