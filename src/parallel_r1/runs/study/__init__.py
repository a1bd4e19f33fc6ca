"""The rows of a table, each a chain of stages, under several budgets and seeds; nothing is done twice."""
