"""What a network attends to: its attention, Grad-CAM, effective receptive field, and where two networks disagree."""
