"""What an evaluation found, as one page that needs nothing else: `html.write`."""
