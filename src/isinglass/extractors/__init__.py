"""Extractors: images in, features out. One file a model."""
