"""Many trials, one judgement: spec, search, early stopping, tracking, report. No tensor is touched here."""

from tokconv.errors import require_extra

require_extra("sweep", "ray", "optuna", "mlflow", "pandas", "rich", "matplotlib", "scipy")
