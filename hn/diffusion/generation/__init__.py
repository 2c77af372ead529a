"""Pictures for people: prompts x seeds x strengths, each with what it was made of."""
