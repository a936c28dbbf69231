"""What readers get from a comparison: tables, lines, pictures."""
