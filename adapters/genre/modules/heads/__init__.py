"""Task heads: from hidden states and item vectors to scores."""
