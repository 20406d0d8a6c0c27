"""Isinglass matches sparse local features between images: LightGlue and SuperGlue, from pixels to matches."""
