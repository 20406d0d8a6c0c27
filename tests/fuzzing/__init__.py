"""Mutated inputs for everything that reads a file or a request: `python -m fuzzing --help`, from the folder tests."""
