"""ImageNet, and other data with a class for each image: how it lies on the disk, crops, augmentation, loaders."""
