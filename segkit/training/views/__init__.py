"""What a training shows of itself: progress, speed, curves, pictures, a summary."""
