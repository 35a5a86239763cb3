"""What leaves tokconv: the exported compressor, its formats, and its places in other libraries."""
