"""The work of `isinglass.sfm` as tasks on a Ray cluster."""
