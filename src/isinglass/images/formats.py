"""Formats of images by the suffix of their files, without Pillow or torch."""

from __future__ import annotations

MAX_PIXELS = 200_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif", ".jp2", ".avif")
