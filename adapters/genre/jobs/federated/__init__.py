"""Federated training: clients that keep their logs, a server that averages what they learnt, and the Flower app of the two."""
