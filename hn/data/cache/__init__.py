"""What is encoded once: pictures and prompts, by content, on disk."""
