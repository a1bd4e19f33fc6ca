"""Credit and loss, one algorithm a file."""
