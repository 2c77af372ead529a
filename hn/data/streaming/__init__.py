"""An HF dataset that is read, decoded and encoded while training."""
