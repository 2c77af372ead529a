"""What is written about pictures, and the prompts that are drawn from it."""
