"""What leaves tokconv: the exported compressor, its formats, its evaluation, and its place in other libraries."""
