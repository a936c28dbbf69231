"""How the rows of a comparison are made and measured; others use `compare`."""
