"""No bit lost: what is saved, how it is read again, and what is gone back to."""
