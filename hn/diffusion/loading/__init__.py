"""Base models in folders and on the hub: what there is of them, and how it is read."""
