"""Matchers: features of two views in, matches out. One file a model."""
