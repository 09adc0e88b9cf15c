"""Matplotlib plots of predictions, ensembles and saliency maps."""
