"""Training dictionaries, ours beside the public libraries: see `python -m benchmarks.sae --help`."""
