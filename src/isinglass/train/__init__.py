"""Training of matchers: labels, losses, sources of pairs, the loop, and the recipes that put them together."""
