"""Studies: compare chains of stages under several budgets and seeds. Work that rows share is done once."""
