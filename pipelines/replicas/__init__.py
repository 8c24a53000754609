"""Small networks in exactly a published layout, for tests and for trying the way that real weights go."""
