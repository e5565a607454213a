"""The command line: ``nnbackend train digits`` and so on."""

from nnbackend.cli.app import main

__all__ = ["main"]
