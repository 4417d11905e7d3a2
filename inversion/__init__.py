"""Where paths come from: inverted from an image, recorded while sampling, or read from a file."""
