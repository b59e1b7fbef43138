"""The command line: one module per group of commands; `main` is the entry point."""

from genre.cli.root import app, main

__all__ = ["app", "main"]
