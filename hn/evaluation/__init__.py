"""How far a hypernetwork is from its base model, and whether that is better."""
