"""`python -m converters` is `infi-convert`."""

from converters.cli import main

main()
