"""What a training shows of itself: progress, speed, curves, images, a summary."""
