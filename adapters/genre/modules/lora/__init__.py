"""Low-rank updates: one trainable layer, and many resident adapters in slots."""
