"""The workstation half: learn filters from a model's own answers and write them as bundles."""
