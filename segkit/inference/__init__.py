"""From a network and an image to labels: test protocols, the engine, the Segmenter."""
