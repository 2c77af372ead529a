"""What a UNet is told of a picture: its text, its size, what of it is to be painted."""
