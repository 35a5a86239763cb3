"""The files in cluster/, by who reads them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("aws", "gcp", "onprem")
FILES = [*(CLUSTER / f"{name}.yaml" for name in LAUNCHERS), *sorted((CLUSTER / "kuberay").glob("*.yaml"))]
