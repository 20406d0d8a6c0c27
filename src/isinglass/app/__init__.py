"""The web app: matches in the browser, and as JSON for other programs."""
