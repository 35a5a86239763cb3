"""Many trials, one judgement: spec, search, early stopping, tracking, report. No tensor is touched here."""
