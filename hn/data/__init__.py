"""From files to batches: pictures, captions, cached latents and contexts."""
