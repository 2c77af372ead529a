"""From a folder of pictures of any shape to a folder of training pictures: crops and captions."""
