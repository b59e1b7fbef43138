"""Audits of a published version: what somebody gains who writes titles, or makes up users, to have an item recommended."""
