"""What the loop calls. Accelerate is an argument here, never a global."""
