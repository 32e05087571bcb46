"""What leaves segkit: model files, and the formats that networks are deployed in."""
