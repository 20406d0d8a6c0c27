"""What a matcher did, layer by layer: to look at, and why it ended where it did."""
