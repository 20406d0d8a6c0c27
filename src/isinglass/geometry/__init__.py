"""Geometry of two views: robust estimation behind one result type."""
