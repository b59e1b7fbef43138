"""The modules that compute: the frozen base, low-rank updates, heads, the behaviour encoder, and the recommender made of them."""
