"""Tables, curves and answers, for a terminal, a notebook or a file."""
