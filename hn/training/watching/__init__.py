"""No step into nothing: what is not finite, who hangs, who wants to end."""
