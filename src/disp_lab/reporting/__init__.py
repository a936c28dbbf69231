"""What people see of a comparison: tables, lines on standard error, pictures."""
