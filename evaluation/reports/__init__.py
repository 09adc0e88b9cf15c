"""HTML reports of a run, an ensemble and a comparison."""
