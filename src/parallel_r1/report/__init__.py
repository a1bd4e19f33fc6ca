"""What people see of a run: tables, pictures, the terminal."""
