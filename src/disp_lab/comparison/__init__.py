"""Makes and measures the rows of a comparison; other packages use `compare`."""
