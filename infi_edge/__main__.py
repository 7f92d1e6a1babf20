"""`python -m infi_edge` is `infi-edge`."""

from infi_edge.cli import main

main()
