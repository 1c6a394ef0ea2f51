"""Recovery of known dictionaries, by us and by the public libraries: see `python -m benchmarks.recovery --help`."""
