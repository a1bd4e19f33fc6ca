"""What an answer is: its syntax, its spans, who sees whom in it. No torch."""
