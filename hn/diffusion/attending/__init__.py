"""How a layer of attention reads through hypernetworks; `hn.diffusion.attention` attaches them."""
