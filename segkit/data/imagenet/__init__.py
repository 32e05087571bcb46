"""ImageNet, and other data with a class for each image: layout on disk, crops, augmentation, loaders."""
