"""Forgetting: which versions were trained on somebody, and versions that are trained again without them."""
