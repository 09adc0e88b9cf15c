"""Rules that combine the predictions of members."""
