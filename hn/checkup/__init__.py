"""What is wrong or odd with a folder of training pictures, and what the model will see of it."""
