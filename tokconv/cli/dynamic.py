"""`tokconv dynamic`: fit the predictor that chooses a grid per image."""

from __future__ import annotations

import argparse
import shlex

from tokconv.errors import printable
from tokconv.exports.champions import champions_folder
from tokconv.exports.dynamic.compressor import FOLDER, read_champions
from tokconv.exports.dynamic.fit import fit_dynamic
from tokconv.exports.evaluate import find_store
from tokconv.store.remote import open_place
from tokconv.system.terminal import progress_line


def run(args: argparse.Namespace) -> None:
    """Fit the predictor of a folder of champions, and print how good it is. Raises TokconvError."""
    champions = champions_folder(args.champions)
    quoted = shlex.quote(str(champions))
    if args.store is not None:
        store = open_place(args.store)
    else:
        fingerprint = read_champions(champions)[0].description.get("store_fingerprint")
        store = find_store(champions, fingerprint, advice=f"name it: tokconv dynamic {quoted} STORE")
    print(f"token store: {printable(store.path)} ({store.summary})")
    with progress_line("measuring") as line:
        report = fit_dynamic(champions, store, device=args.device, progress=line)
    print(f"{report.text()}\n\n{printable(champions / FOLDER)}: use it with")
    target = report.dynamic[len(report.dynamic) // 2].target
    chosen = f"--compressors {printable(quoted)} --target-fvu {target:g}"
    print(f"  tokconv compress IMAGES {chosen} --out tokens.safetensors")
