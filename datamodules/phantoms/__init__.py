"""Generated images with known lesions."""
