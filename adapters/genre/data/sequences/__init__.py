"""From events to token ids: layout of a user's history, windows, rows and padded batches."""
