"""What users get wrong, as 74 rows: what is given, and what must come of it."""
