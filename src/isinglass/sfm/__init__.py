"""Maps of many photos: stores, pairs, COLMAP, localisation."""
