"""Labelled texts: schema, validation and splits by group."""
