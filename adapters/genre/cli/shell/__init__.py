"""How the program behaves in a shell: Ctrl-C, `--quiet` and `--verbose`, completion. Imports nothing slow."""
