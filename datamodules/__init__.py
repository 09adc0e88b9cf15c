"""What is seen: sources, manifests, preprocessing, augmentation, loaders."""
