"""`tokconv encode`: images to a token store."""

from __future__ import annotations

import argparse
from functools import partial

from tokconv.config.overrides import compose
from tokconv.encoding.console import encode_and_print
from tokconv.encoding.encoders import parse_encoders
from tokconv.encoding.plan import describe_plan
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device


def run(args: argparse.Namespace) -> None:
    """Encode, or plan it. Raises TokconvError."""
    encoders = None
    if args.encoders is not None:
        cpus = 1 if args.cpus_per_encoder is None else args.cpus_per_encoder
        encoders = parse_encoders(args.encoders, gpus=args.gpus_per_encoder, cpus=cpus)
    config = compose(args.overrides)
    if args.plan:
        device = resolve_device(args.device)
        speed = args.images_per_second
        print(describe_plan(config, device=device, encoders=encoders, images=args.images, images_per_second=speed))
        return
    encode_with = None
    if encoders is not None:
        # Only a pool needs Ray.
        from tokconv.encoding.pool import encode_with_pool

        encode_with = partial(encode_with_pool, config, encoders)
    try:
        store = encode_and_print(config, device=args.device, encode_with=encode_with, retry_skipped=True)
    except KeyboardInterrupt:
        print("stopped; finished shards are kept, the same command continues")
        raise
    if args.verify:
        TokenStore.open(store.path, verify=True, fingerprint=store.fingerprint)
        print("every shard has the hash it was written with")
