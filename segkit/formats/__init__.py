"""Annotation formats of other tools, one small file each: read as regions, written from label maps."""
