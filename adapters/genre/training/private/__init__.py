"""Training with user-level differential privacy: accounting, noise, per-user gradients, noisy statistics, the budget table."""
