"""The frozen base model: where it comes from, how it is loaded, and its attention."""
