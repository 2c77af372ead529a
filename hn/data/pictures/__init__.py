"""Pictures: where they come from, whether they can be used, and what of them is seen."""
