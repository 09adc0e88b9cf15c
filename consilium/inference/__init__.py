"""A checkpoint or an ensemble applied to images."""
