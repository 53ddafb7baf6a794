"""`refsam-bench exchange`: does the track token carry who is who?"""

from __future__ import annotations

import json

import click

from refsam_bench.commands import options
from refsam_trt.command.progress import Progress


@click.command()
@click.argument("bundle")
@options.videos_seed
@click.option("--num-videos", type=click.IntRange(min=1), default=200)
@options.variant
@options.backend
@options.as_json
def exchange(
    bundle: str, seed: int, num_videos: int, variant: str | None, backend: str, as_json: bool
) -> None:
    """Exchange the saved track tokens of twins that only their past tells apart.

    In synthetic videos of the slice `track`, after 12 of 16 frames. Shares of the videos: `kept`,
    both masks are on their own object when nothing is exchanged; `exchanged`, with exchanged tokens
    both are where the other's are without.
    """
    import refsam_trt
    from refsam_bench.exchange.token_exchange import exchange_tokens

    with (
        refsam_trt.load(bundle, backend=backend, variant=variant) as engine,
        Progress("refsam-bench exchange", num_videos) as progress,
    ):
        exchanges = exchange_tokens(engine, seed, num_videos, progress.update)
        origin = {"bundle_id": engine.bundle_id, "random_weights": engine.is_random_init}
    if as_json:
        click.echo(json.dumps({**origin, **exchanges.to_json()}))
        return
    if origin["random_weights"]:
        click.echo(options.RANDOM_NOTE)
    click.echo(
        f"{len(exchanges.videos)} of {num_videos} videos have named twins: {exchanges.kept:.1%} "
        f"keep their objects, {exchanges.exchanged:.1%} exchange them with their tokens"
    )
