"""One evaluation protocol for compressors and baselines: figures, readers, tables and plots."""
