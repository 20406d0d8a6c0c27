"""Benchmarks and folders of images: where the files are and what is true of them. One file a layout."""
