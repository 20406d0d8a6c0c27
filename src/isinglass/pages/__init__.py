"""Reports as HTML: one file with its style and figures inside, for any screen, light or dark."""
