"""``python -m nnbackend.cli``."""

from nnbackend.cli.app import main

main()
