"""From a network and a picture to labels: test protocols, the engine, the Segmenter."""
