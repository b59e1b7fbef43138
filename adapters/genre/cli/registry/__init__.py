"""`genre registry …`: look at versions, move aliases, sign, exchange adapters, clean up."""
