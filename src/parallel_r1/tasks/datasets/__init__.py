"""Sets of problems: where they come from, their splits, what is wrong with them."""
