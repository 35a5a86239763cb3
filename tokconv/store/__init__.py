"""Tokens on disk: format, reader, writer, copies from URLs, samples, and what is computed once beside a store."""
