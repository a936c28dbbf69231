"""What people see of a comparison: tables, lines, pictures."""
